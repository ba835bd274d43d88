// Package pluginhost finds plugin programs, checks who they are, and runs them: one process for one device.
//
//	Discover → Catalogue.Find (or FromPath) → Describe → OpenFiles → Start → *Instance (a device.Instance)
//
// A plugin is not trusted. Its process has a session of its own, an environment and a temporary directory of its own, and no
// descriptor but its pipes and the descriptor socket. Whatever it does, every call here returns within a bounded time, and
// when Instance.Close returns nothing of it is left. It dies with the launcher, also if that is killed.
//
// Words: a plugin is a program; an instance is its running process; it serves one device.
package pluginhost
