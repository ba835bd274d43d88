package vhostuser

import "fmt"

// Request is a message's type, front-end to back-end.
type Request uint32

// Requests that a session understands; the numbers are the protocol's.
const (
	ReqGetFeatures         Request = 1
	ReqSetFeatures         Request = 2
	ReqSetOwner            Request = 3
	ReqResetOwner          Request = 4
	ReqSetMemTable         Request = 5
	ReqSetVringNum         Request = 8
	ReqSetVringAddr        Request = 9
	ReqSetVringBase        Request = 10
	ReqGetVringBase        Request = 11
	ReqSetVringKick        Request = 12
	ReqSetVringCall        Request = 13
	ReqSetVringErr         Request = 14
	ReqGetProtocolFeatures Request = 15
	ReqSetProtocolFeatures Request = 16
	ReqGetQueueNum         Request = 17
	ReqSetVringEnable      Request = 18
	ReqSetBackendReqFD     Request = 21
	ReqGetConfig           Request = 24
	ReqSetConfig           Request = 25
	ReqResetDevice         Request = 34
)

// BackendConfigChange is the back-end's request CONFIG_CHANGE_MSG: the configuration space changed by itself.
const BackendConfigChange Request = 2

// Header flags.
const (
	// FlagVersion is version 1 in bits 0 and 1.
	FlagVersion uint32 = 0x1
	// FlagReply marks a reply.
	FlagReply uint32 = 0x4
	// FlagNeedReply asks for an acknowledgement; it counts only once ProtoReplyAck is negotiated.
	FlagNeedReply uint32 = 0x8

	flagVersionMask uint32 = 0x3
	// replyFlags is exact: front-ends compare for equality.
	replyFlags = FlagVersion | FlagReply
)

// FProtocolFeatures is feature bit 30: the protocol features below exist, and rings begin disabled.
const FProtocolFeatures = 1 << 30

// ProtocolFeatures is a set of protocol feature bits.
type ProtocolFeatures uint64

// Protocol features that can be offered.
const (
	ProtoMQ          ProtocolFeatures = 1 << 0
	ProtoReplyAck    ProtocolFeatures = 1 << 3
	ProtoBackendReq  ProtocolFeatures = 1 << 5
	ProtoConfig      ProtocolFeatures = 1 << 9
	ProtoResetDevice ProtocolFeatures = 1 << 13

	// ProtoAll is everything that a session implements. INBAND_NOTIFICATIONS (14) never belongs to it: QEMU 7.2
	// accepts it without implementing it, and User-Mode Linux would send every kick through the launcher.
	ProtoAll = ProtoMQ | ProtoReplyAck | ProtoBackendReq | ProtoConfig | ProtoResetDevice
	// ProtoUML is what User-Mode Linux is offered.
	ProtoUML = ProtoMQ | ProtoReplyAck | ProtoBackendReq | ProtoConfig
)

// vringIndexMask and vringNoFD are the fields of the u64 of SET_VRING_KICK, _CALL and _ERR.
const (
	vringIndexMask uint64 = 0xff
	vringNoFD      uint64 = 0x100
)

// String is the name in the protocol's document, or "request N".
func (r Request) String() string {
	switch r {
	case ReqGetFeatures:
		return "GET_FEATURES"
	case ReqSetFeatures:
		return "SET_FEATURES"
	case ReqSetOwner:
		return "SET_OWNER"
	case ReqResetOwner:
		return "RESET_OWNER"
	case ReqSetMemTable:
		return "SET_MEM_TABLE"
	case ReqSetVringNum:
		return "SET_VRING_NUM"
	case ReqSetVringAddr:
		return "SET_VRING_ADDR"
	case ReqSetVringBase:
		return "SET_VRING_BASE"
	case ReqGetVringBase:
		return "GET_VRING_BASE"
	case ReqSetVringKick:
		return "SET_VRING_KICK"
	case ReqSetVringCall:
		return "SET_VRING_CALL"
	case ReqSetVringErr:
		return "SET_VRING_ERR"
	case ReqGetProtocolFeatures:
		return "GET_PROTOCOL_FEATURES"
	case ReqSetProtocolFeatures:
		return "SET_PROTOCOL_FEATURES"
	case ReqGetQueueNum:
		return "GET_QUEUE_NUM"
	case ReqSetVringEnable:
		return "SET_VRING_ENABLE"
	case ReqSetBackendReqFD:
		return "SET_BACKEND_REQ_FD"
	case ReqGetConfig:
		return "GET_CONFIG"
	case ReqSetConfig:
		return "SET_CONFIG"
	case ReqResetDevice:
		return "RESET_DEVICE"
	}
	return fmt.Sprintf("request %d", uint32(r))
}

// hasReply tells whether r has a reply of its own, so that it is never acknowledged.
func (r Request) hasReply() bool {
	switch r { //nolint:exhaustive // the others have none
	case ReqGetFeatures, ReqGetProtocolFeatures, ReqGetQueueNum, ReqGetVringBase, ReqGetConfig:
		return true
	}
	return false
}
