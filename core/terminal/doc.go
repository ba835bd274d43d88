// Package terminal owns the user's terminal while a machine runs and connects it to a console plugin.
//
// Open puts the terminal into raw mode and makes a socket pair: the plugin gets one end (PluginEnd), and bytes are pumped
// between the other and standard input and output. The plugin never sees the terminal, so its death cannot spoil it, and its
// successor continues on the same socket.
//
// In front of the guest's input stands the escape key, Ctrl-A: Ctrl-A x asks the launcher to quit, Ctrl-A h prints help,
// Ctrl-A Ctrl-A sends one Ctrl-A; any other key after it is sent together with it.
//
// Standard input and output may also be pipes or files: then they are pumped as they are, without escape key, and the
// end of input half-closes the socket.
//
// # Restoring
//
// Close restores the terminal; the launcher defers it and ends in order on SIGINT, SIGTERM and SIGHUP. For the death that
// nobody can catch, Open starts a guard: the launcher's own program with GuardArg as its only argument, in a session of its
// own, holding the terminal and a pipe. If the pipe ends without a farewell, it restores the terminal. A launcher in the
// background never touches the terminal: it waits until it is in the foreground, and enters raw mode again after SIGCONT.
package terminal
