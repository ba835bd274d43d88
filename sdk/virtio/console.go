package virtio

// Console device (5.3).
const (
	FConsoleSize       Features = 1 << 0
	FConsoleMultiport  Features = 1 << 1
	FConsoleEmergWrite Features = 1 << 2

	// Queues: port0 receiveq 0, port0 transmitq 1, control receiveq 2, control transmitq 3, port n ≥ 1: 2n+2, 2n+3 (5.3.2).
	ConsoleQueueRx0       = 0
	ConsoleQueueTx0       = 1
	ConsoleQueueControlRx = 2
	ConsoleQueueControlTx = 3

	// Offsets in struct virtio_console_config: le16 cols, le16 rows, le32 max_nr_ports, le32 emerg_wr (5.3.4).
	ConsoleCfgCols       = 0
	ConsoleCfgRows       = 2
	ConsoleCfgMaxNrPorts = 4
	ConsoleCfgEmergWr    = 8
	ConsoleCfgSize       = 12

	// ConsoleControlSize: le32 id, le16 event, le16 value (5.3.6.2).
	ConsoleControlSize = 8

	// Control events (5.3.6.2).
	ConsoleDeviceReady  = 0
	ConsoleDeviceAdd    = 1
	ConsoleDeviceRemove = 2
	ConsolePortReady    = 3
	ConsoleConsolePort  = 4
	ConsoleResize       = 5
	ConsolePortOpen     = 6
	ConsolePortName     = 7
)
