// Package bench loads a device through the loopback machine with our own driver and measures it. It measures the back-end:
// no guest's slowness is in the figures. IOPS on a shared machine spread by tens of percent; the device's CPU time per request
// is the stable figure.
package bench
