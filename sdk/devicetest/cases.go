package devicetest

import (
	"slices"

	"github.com/virtplug/virtplug/sdk/virtio"
)

// Sources of rules.
const (
	lifeCycle  = "plugin-protocol.md, Life cycle"
	inflightMD = "plugin-protocol.md, In-flight tracking"
	socketMD   = "plugin-protocol.md, The descriptor socket"
	stateMD    = "plugin-protocol.md, Device state"
)

// Cases lists all cases, in the order in which they run.
func Cases() []Case {
	return slices.Concat([]Case{
		{"describe/constant", lifeCycle, describeIsConstant},
		{"describe/program", "plugin-protocol.md, Started by hand", describeProgram},
		{"configure/once", lifeCycle, configureOnce},
		{"configure/strict", "plugin-protocol.md, Life cycle, Configure", configureStrict},
		{"order/unconfigured", lifeCycle, orderUnconfigured},
		{"order/not-ready", lifeCycle, orderNotReady},
		{"order/running", lifeCycle, orderRunning},
		{"features/subset", "VIRTIO 1.2, 2.2; plugin-protocol.md, Life cycle", featuresSubset},
		{"features/legacy", "VIRTIO 1.2, 2.2.3, 6.1; plugin.proto, CAPABILITY_LEGACY", featuresLegacy},
		{"features/legacy+event-idx", "VIRTIO 1.2, 2.2.3, 2.7.10; plugin.proto, CAPABILITY_LEGACY", legacyQueues(virtio.FIndirectDesc | virtio.FEventIdx)},
		{"config/space", "VIRTIO 1.2, 2.5; plugin-protocol.md, Life cycle", configSpace},
		{"memory/refused", lifeCycle, memoryRefused},
		{"memory/replaced", lifeCycle, memoryReplaced},
		{"memory/borders", "VIRTIO 1.2, 2.7.4", memoryBorders},
		{"queue/arguments", "plugin-protocol.md, StartQueue; VIRTIO 1.2, 2.7", queueArguments},
		{"queue/start-stop", lifeCycle, queueStartStop},
		{"queue/restart", lifeCycle, queueRestart},
		{"queue/stop-under-load", lifeCycle, queueStopUnderLoad},
		{"queue/full-size", "VIRTIO 1.2, 2.7", queueFullSize},
		{"queue/index-wraps", "VIRTIO 1.2, 2.7.6, 2.7.8", queueIndexWraps},
		{"chains/plain", "VIRTIO 1.2, 2.7.4, 2.7.8", chains(0)},
		{"chains/indirect", "VIRTIO 1.2, 2.7.5.3", chains(virtio.FIndirectDesc)},
		{"chains/event-idx", "VIRTIO 1.2, 2.7.7, 2.7.10", chains(virtio.FEventIdx)},
		{"chains/indirect+event-idx", "VIRTIO 1.2, 2.7.5.3, 2.7.10", chains(virtio.FIndirectDesc | virtio.FEventIdx)},
		{"notifications/plain", "VIRTIO 1.2, 2.7.7, 2.7.10", notifications(0)},
		{"notifications/event-idx", "VIRTIO 1.2, 2.7.7, 2.7.10", notifications(virtio.FEventIdx)},
		{"notifications/flood", "design: a hostile driver", kickFlood},
		{"notifications/descriptors", "plugin-protocol.md, StartQueue", notificationDescriptors},
		{"reset/mid-flight", "VIRTIO 1.2, 2.4; plugin-protocol.md, Life cycle", resetMidFlight},
		{"reset/forgets", lifeCycle, resetForgets},
		{"pause/resume", lifeCycle, pauseResume},
		{"health/well", lifeCycle, healthWell},
		{"statistics/count", "plugin.proto, QueueStatistics", statisticsCount},
		{"commands/answered", "plugin.proto, CommandSpec", commandsAnswered},
	}, hostileCases(), []Case{
		{"recover/in-flight", inflightMD, recoverInflight},
		{"recover/stopped", inflightMD, recoverStopped},
		{"recover/publishing", inflightMD, recoverPublishing},
		{"recover/garbage", inflightMD, recoverGarbage},
		{"recover/killed", inflightMD, recoverKilled},
		{"state/killed", stateMD, stateKilled},
		{"state/reset", stateMD, stateReset},
		{"state/garbage", stateMD, stateGarbage},
		{"state/unknown", stateMD, stateUnknown},
		{"tokens/misused", socketMD, tokensMisused},
		{"tokens/never", socketMD, tokenNeverComes},
		{"leaks/start-stop", "design: a device runs for years", leaks},
		{"end/close", "plugin-protocol.md, The end", endClose},
		{"end/launcher-gone", "plugin-protocol.md, The descriptor socket", endLauncherGone},
	})
}
