package virtio

import "fmt"

// DeviceID is a virtio device type (section 5).
type DeviceID uint32

// Device types (section 5).
const (
	IDNet       DeviceID = 1
	IDBlock     DeviceID = 2
	IDConsole   DeviceID = 3
	IDEntropy   DeviceID = 4
	IDBalloon   DeviceID = 5
	IDSCSI      DeviceID = 8
	ID9P        DeviceID = 9
	IDGPU       DeviceID = 16
	IDInput     DeviceID = 18
	IDSocket    DeviceID = 19
	IDCrypto    DeviceID = 20
	IDIOMMU     DeviceID = 23
	IDMemory    DeviceID = 24
	IDSound     DeviceID = 25
	IDFS        DeviceID = 26
	IDPmem      DeviceID = 27
	IDGPIO      DeviceID = 41
	IDI2C       DeviceID = 34
	IDBluetooth DeviceID = 40
)

var deviceNames = map[DeviceID]string{
	IDNet: "net", IDBlock: "block", IDConsole: "console", IDEntropy: "entropy", IDBalloon: "balloon", IDSCSI: "scsi",
	ID9P: "9p", IDGPU: "gpu", IDInput: "input", IDSocket: "vsock", IDCrypto: "crypto", IDIOMMU: "iommu",
	IDMemory: "mem", IDSound: "sound", IDFS: "fs", IDPmem: "pmem", IDGPIO: "gpio", IDI2C: "i2c", IDBluetooth: "bluetooth",
}

// String is the type's short name, or "device-N".
func (id DeviceID) String() string {
	if n, ok := deviceNames[id]; ok {
		return n
	}
	return fmt.Sprintf("device-%d", uint32(id))
}

// Status is the device status field (2.1).
type Status uint8

// Device status bits (2.1).
const (
	StatusAcknowledge Status = 1
	StatusDriver      Status = 2
	StatusDriverOK    Status = 4
	StatusFeaturesOK  Status = 8
	StatusNeedsReset  Status = 64
	StatusFailed      Status = 128
)

// Has tells whether all bits of s2 are set.
func (s Status) Has(s2 Status) bool { return s&s2 == s2 }
