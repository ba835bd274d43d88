// Package guest has the tests that boot a real Linux under User-Mode Linux with our devices, by the programs as a user has
// them: `virtplug run`, plugins as processes of their own, a terminal.
//
// They need the Debian packages user-mode-linux, busybox-static and e2fsprogs; `make test-guest` installs them. Where they
// are missing every test says so and is skipped; in CI a skip is a failure.
package guest
