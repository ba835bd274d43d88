package pluginrpc

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/bits"
	"regexp"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"

	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// Bounds of what a plugin may answer. Those without a section are ours: generous for a device, small for a launcher.
const (
	// MaxQueues is the most virtqueues of a device.
	MaxQueues = 1024
	// MaxConfigBytes is the largest device configuration space: what is left of a page of virtio-mmio registers.
	MaxConfigBytes = 4096

	maxMessage    = 4096 // a text for people, bytes
	maxPath       = 256  // an attribute's path, bytes
	maxVersion    = 64
	maxAPIs       = 64
	maxCaps       = 64
	maxCommands   = 64
	maxAttributes = 256 // of one block, and as many nested blocks
	maxSchema     = 2048
	maxDepth      = 4
	maxOneOf      = 256
	maxCounters   = 256
	maxFacts      = 64
)

// Patterns of names: compiled once, never changed.
var (
	pluginName    = regexp.MustCompile(`^[a-z][a-z0-9-]{0,31}$`)
	memberName    = regexp.MustCompile(`^[a-z][a-z0-9_]{0,63}$`)
	pluginVersion = regexp.MustCompile(`^(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})([-+][0-9A-Za-z.+-]+)?$`)
)

// ValidName tells whether s can be a plugin's name, a command's or a device type's: [a-z][a-z0-9-]{0,31}.
func ValidName(s string) bool { return pluginName.MatchString(s) }

// ValidMember tells whether s can name a setting, a block or a counter: [a-z][a-z0-9_]{0,63}.
func ValidMember(s string) bool { return memberName.MatchString(s) }

// answer marks what check found as the plugin's fault.
func answer(op string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w: %w", op, ErrAnswer, err)
}

// ParseDescription reads the JSON that `<plugin> describe` prints, and checks it. Members it does not know are ignored.
func ParseDescription(text []byte) (*pluginv1.DescribeResponse, error) {
	d := &pluginv1.DescribeResponse{}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true, RecursionLimit: 100}).Unmarshal(text, d); err != nil {
		return nil, answer("describe", err)
	}
	return d, answer("describe", CheckDescription(d))
}

// FormatDescription is the reverse of ParseDescription: indented JSON, the same bytes for the same description.
func FormatDescription(d *pluginv1.DescribeResponse) ([]byte, error) {
	raw, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(d)
	if err != nil {
		return nil, fmt.Errorf("describe: %w", err)
	}
	var v json.RawMessage = raw
	out, err := json.MarshalIndent(v, "", "  ") // protojson varies its white space on purpose
	if err != nil {
		return nil, fmt.Errorf("describe: %w", err)
	}
	return append(out, '\n'), nil
}

// CheckDescription tells what is wrong with a description. Authors see it too: sdk.Main checks its own.
func CheckDescription(d *pluginv1.DescribeResponse) error {
	switch {
	case !ValidName(d.GetName()):
		return fmt.Errorf("name %q: want lower-case letters, digits and '-', at most 32", clip(d.GetName()))
	case len(d.GetVersion()) > maxVersion || !pluginVersion.MatchString(d.GetVersion()):
		return fmt.Errorf("version %q: want a semantic version such as 1.2.3", clip(d.GetVersion()))
	case len(d.GetApiVersions()) == 0 || len(d.GetApiVersions()) > maxAPIs:
		return fmt.Errorf("%d API versions: want 1 to %d", len(d.GetApiVersions()), maxAPIs)
	case d.GetDeviceId() == 0 || d.GetDeviceId() > 0xffff:
		return fmt.Errorf("device ID %d: want a virtio device type, 1 to 65535", d.GetDeviceId())
	case len(d.GetCapabilities()) > maxCaps:
		return fmt.Errorf("%d capabilities: want at most %d", len(d.GetCapabilities()), maxCaps)
	case len(d.GetCommands()) > maxCommands:
		return fmt.Errorf("%d commands: want at most %d", len(d.GetCommands()), maxCommands)
	}
	if err := checkText("description", d.GetDescription()); err != nil {
		return err
	}
	if err := CheckSchema(d.GetSchema()); err != nil {
		return fmt.Errorf("schema: %w", err)
	}
	var names []string
	for _, c := range d.GetCommands() {
		if !ValidName(c.GetName()) || slices.Contains(names, c.GetName()) {
			return fmt.Errorf("command %q: not a name, or there twice", clip(c.GetName()))
		}
		names = append(names, c.GetName())
		if err := errors.Join(checkText("description", c.GetDescription()), CheckSchema(c.GetArguments())); err != nil {
			return fmt.Errorf("command %s: %w", c.GetName(), err)
		}
	}
	return nil
}

// CheckSchema tells what is wrong with a schema: names, types, defaults, and its size. nil is an empty schema.
func CheckSchema(s *pluginv1.Schema) error {
	items := 0
	return checkSchema(s, 0, &items)
}

func checkSchema(s *pluginv1.Schema, depth int, items *int) error {
	*items += len(s.GetAttributes()) + len(s.GetBlocks())
	if depth > maxDepth || len(s.GetAttributes()) > maxAttributes || len(s.GetBlocks()) > maxAttributes || *items > maxSchema {
		return errors.New("too large or too deep")
	}
	names := make(map[string]*pluginv1.Attribute)
	for _, a := range s.GetAttributes() {
		if !ValidMember(a.GetName()) || names[a.GetName()] != nil {
			return fmt.Errorf("attribute %q: not a name, or there twice", clip(a.GetName()))
		}
		names[a.GetName()] = a
		if err := checkAttribute(a); err != nil {
			return fmt.Errorf("attribute %s: %w", a.GetName(), err)
		}
	}
	for _, a := range s.GetAttributes() {
		if ro := a.GetFile().GetReadOnlyIf(); ro != "" && names[ro].GetType() != pluginv1.AttributeType_ATTRIBUTE_TYPE_BOOL {
			return fmt.Errorf("attribute %s: read_only_if %q: no boolean attribute of this block", a.GetName(), clip(ro))
		}
		if err := checkTapAccess(a.GetTap(), names); err != nil {
			return fmt.Errorf("attribute %s: %w", a.GetName(), err)
		}
	}
	for _, b := range s.GetBlocks() {
		if !ValidMember(b.GetName()) || names[b.GetName()] != nil {
			return fmt.Errorf("block %q: not a name, or there twice", clip(b.GetName()))
		}
		names[b.GetName()] = &pluginv1.Attribute{}
		if err := checkBlock(b, depth, items); err != nil {
			return fmt.Errorf("block %s: %w", b.GetName(), err)
		}
	}
	return nil
}

func checkBlock(b *pluginv1.Block, depth int, items *int) error {
	if b.GetMaxItems() != 0 && b.GetMinItems() > b.GetMaxItems() {
		return fmt.Errorf("min_items %d > max_items %d", b.GetMinItems(), b.GetMaxItems())
	}
	if l := b.GetLabel(); l != "" {
		if !ValidMember(l) || slices.ContainsFunc(b.GetSchema().GetAttributes(), func(a *pluginv1.Attribute) bool { return a.GetName() == l }) {
			return fmt.Errorf("label %q: not a name, or an attribute too", clip(l))
		}
	}
	return errors.Join(checkText("description", b.GetDescription()), checkSchema(b.GetSchema(), depth+1, items))
}

func checkAttribute(a *pluginv1.Attribute) error {
	if _, ok := pluginv1.AttributeType_name[int32(a.GetType())]; !ok || a.GetType() == pluginv1.AttributeType_ATTRIBUTE_TYPE_UNSPECIFIED {
		return fmt.Errorf("unknown type %d", a.GetType())
	}
	isTap := a.GetType() == pluginv1.AttributeType_ATTRIBUTE_TYPE_TAP
	switch {
	case a.GetFile() != nil && (isTap || !OpenedByLauncher(a.GetType())):
		return errors.New("file access for what is no file")
	case a.GetTap() != nil && !isTap:
		return errors.New("tap access for what is no tap")
	case a.GetDefaultJson() != "" && OpenedByLauncher(a.GetType()):
		return errors.New("what the launcher opens has no default")
	case a.GetDefaultJson() != "" && (len(a.GetDefaultJson()) > maxMessage || !json.Valid([]byte(a.GetDefaultJson()))):
		return errors.New("default: not JSON, or too long")
	case a.GetDefaultSeveralJson() != "" && (a.GetDefaultJson() == "" || len(a.GetDefaultSeveralJson()) > maxMessage || !json.Valid([]byte(a.GetDefaultSeveralJson()))):
		return errors.New("default for several devices: not JSON, too long, or without a default")
	case a.Min != nil && a.Max != nil && a.GetMin() > a.GetMax():
		return fmt.Errorf("min %d > max %d", a.GetMin(), a.GetMax())
	case len(a.GetOneOf()) > maxOneOf:
		return errors.New("too many values in one_of")
	case len(a.GetPathPrefixes()) > maxOneOf:
		return errors.New("too many path prefixes")
	case len(a.GetPathPrefixes()) > 0 && a.GetType() != pluginv1.AttributeType_ATTRIBUTE_TYPE_STRING:
		return errors.New("path prefixes for what is no string")
	}
	for _, v := range slices.Concat(a.GetOneOf(), a.GetPathPrefixes()) {
		if err := checkText("one_of or path_prefixes", v); err != nil {
			return err
		}
	}
	return checkText("description", a.GetDescription())
}

// OpenedByLauncher tells whether attributes of type t stand for descriptors that the launcher passes.
func OpenedByLauncher(t pluginv1.AttributeType) bool {
	switch t { //nolint:exhaustive // the others are plain values
	case pluginv1.AttributeType_ATTRIBUTE_TYPE_FILE, pluginv1.AttributeType_ATTRIBUTE_TYPE_LISTENER, pluginv1.AttributeType_ATTRIBUTE_TYPE_TAP:
		return true
	}
	return false
}

// checkTapAccess checks that the attributes which t names are there, with the right types. names are those of t's block.
func checkTapAccess(t *pluginv1.TapAccess, names map[string]*pluginv1.Attribute) error {
	for _, n := range []struct {
		key, name string
		want      pluginv1.AttributeType
	}{
		{"queue_pairs", t.GetQueuePairs(), pluginv1.AttributeType_ATTRIBUTE_TYPE_INT},
		{"bridge", t.GetBridge(), pluginv1.AttributeType_ATTRIBUTE_TYPE_STRING},
		{"addresses", t.GetAddresses(), pluginv1.AttributeType_ATTRIBUTE_TYPE_STRING_LIST},
		{"mtu", t.GetMtu(), pluginv1.AttributeType_ATTRIBUTE_TYPE_INT},
	} {
		if n.name != "" && names[n.name].GetType() != n.want {
			kind := strings.ToLower(strings.TrimPrefix(n.want.String(), "ATTRIBUTE_TYPE_"))
			return fmt.Errorf("tap: %s=%s: no attribute of type %s in this block", n.key, clip(n.name), kind)
		}
		// What the interface is connected to is the user's to say.
		if (n.key == "bridge" || n.key == "addresses") && names[n.name].GetDefaultJson() != "" {
			return fmt.Errorf("tap: %s=%s: it must not have a default", n.key, clip(n.name))
		}
	}
	return nil
}

func checkText(what, s string) error {
	if len(s) > maxMessage || cleanText(s, maxMessage) != s {
		return fmt.Errorf("%s: longer than %d bytes, or has control characters", what, maxMessage)
	}
	return nil
}

// clip makes a peer's name fit for a message.
func clip(s string) string { return cleanText(strings.ToValidUTF8(s, "?"), 64) }

// ValidQueueSize tells whether n is a power of two, 1 to 32768 (VIRTIO 1.2, 2.7).
func ValidQueueSize(n uint32) bool { return bits.OnesCount32(n) == 1 && n <= virtio.QueueSizeMax }

func checkOffer(r *pluginv1.ConfigureResponse, withheld virtio.Features) (Offer, error) {
	o := Offer{Features: virtio.Features(r.GetFeatures()), Config: r.GetConfig()}
	switch {
	case len(r.GetQueueSizes()) > MaxQueues:
		return Offer{}, fmt.Errorf("%d queues: want at most %d", len(r.GetQueueSizes()), MaxQueues)
	case len(o.Config) > MaxConfigBytes:
		return Offer{}, fmt.Errorf("configuration space of %d bytes: want at most %d", len(o.Config), MaxConfigBytes)
	case !o.Features.Has(virtio.FVersion1) && !withheld.Has(virtio.FVersion1):
		return Offer{}, fmt.Errorf("features %v lack VIRTIO_F_VERSION_1", o.Features)
	}
	// Withheld bits are a hint to the plugin: take them out here, whatever it answered.
	o.Features &^= withheld
	for i, n := range r.GetQueueSizes() {
		if !ValidQueueSize(n) {
			return Offer{}, fmt.Errorf("queue %d: size %d: want a power of two, at most %d", i, n, virtio.QueueSizeMax)
		}
		o.QueueSizes = append(o.QueueSizes, uint16(n)) //nolint:gosec // at most 32768
	}
	return o, nil
}

func checkConfig(op string, r interface{ GetConfig() []byte }, err error) ([]byte, error) {
	if err != nil {
		return nil, FromStatus(op, err)
	}
	if n := len(r.GetConfig()); n > MaxConfigBytes {
		return nil, answer(op, fmt.Errorf("configuration space of %d bytes: want at most %d", n, MaxConfigBytes))
	}
	return r.GetConfig(), nil
}

func checkObject(text []byte) error {
	if trimmed := strings.TrimSpace(string(text)); !strings.HasPrefix(trimmed, "{") || !json.Valid(text) {
		return errors.New("not a JSON object")
	}
	return nil
}

func checkStatistics(r *pluginv1.StatisticsResponse) (Statistics, error) {
	s := Statistics{Counters: r.GetCounters()}
	if len(r.GetQueues()) > MaxQueues || len(s.Counters) > maxCounters {
		return Statistics{}, fmt.Errorf("%d queues and %d counters: too many", len(r.GetQueues()), len(s.Counters))
	}
	for name := range s.Counters {
		if !ValidMember(name) {
			return Statistics{}, fmt.Errorf("counter %q: not a name", clip(name))
		}
	}
	for _, q := range r.GetQueues() {
		if q.GetIndex() >= MaxQueues {
			return Statistics{}, fmt.Errorf("queue %d: no such queue", q.GetIndex())
		}
		s.Queues = append(s.Queues, QueueStatistics{
			Index: int(q.GetIndex()), Running: q.GetRunning(), Chains: q.GetChains(), Completed: q.GetCompleted(),
			ReadableBytes: q.GetReadableBytes(), WrittenBytes: q.GetWrittenBytes(), Kicks: q.GetKicks(), Calls: q.GetCalls(),
			CallsSuppressed: q.GetCallsSuppressed(), Errors: q.GetErrors(), Broken: cleanText(q.GetBroken(), maxMessage),
		})
	}
	return s, nil
}

// checkEvent converts an event, clipping what is too long. ok is false for an event that this version does not know.
func checkEvent(e *pluginv1.Event) (ev Event, ok bool) {
	switch e := e.GetEvent().(type) {
	case *pluginv1.Event_ConfigChanged:
		c := e.ConfigChanged.GetConfig()
		return ConfigChanged{Config: c}, len(c) <= MaxConfigBytes
	case *pluginv1.Event_Error:
		d := e.Error
		return DeviceError{
			Message: cleanText(d.GetMessage(), maxMessage), Queue: min(max(int(d.GetQueue()), -1), MaxQueues), NeedsReset: d.GetNeedsReset(),
		}, true
	case *pluginv1.Event_Notice:
		n := Notice{Message: cleanText(e.Notice.GetMessage(), maxMessage)}
		for k, v := range e.Notice.GetFacts() {
			if ValidMember(k) && len(n.Facts) < maxFacts {
				if n.Facts == nil {
					n.Facts = make(map[string]string)
				}
				n.Facts[k] = cleanText(v, maxMessage)
			}
		}
		return n, true
	default:
		return nil, false
	}
}
