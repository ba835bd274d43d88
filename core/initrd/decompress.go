package initrd

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// maxModuleSize bounds a module, uncompressed. The largest of Debian have 10 MiB. Arbitrary.
const maxModuleSize = 256 << 20

// compressions are the ends of file names by which distributions tell how a module is compressed.
var compressions = [...]string{".gz", ".xz", ".zst"}

// decompress takes a compression away. The guest's modprobe may know none of them.
func decompress(r io.Reader, compression string) (io.ReadCloser, error) {
	switch compression {
	case ".gz":
		return gzip.NewReader(r)
	case ".xz":
		x, err := xz.NewReader(r)
		return io.NopCloser(x), err
	}
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxModuleSize))
	if err != nil {
		return nil, err
	}
	return z.IOReadCloser(), nil
}

// uncompressedName is a module's file name without the end that tells its compression.
func uncompressedName(name string) string {
	for _, end := range compressions {
		if plain, ok := strings.CutSuffix(name, end); ok && strings.HasSuffix(plain, ".ko") {
			return plain
		}
	}
	return name
}

// readModule reads a module and takes its compression away.
func readModule(name string) ([]byte, error) {
	data, err := os.ReadFile(name) //nolint:gosec // G304: the module directory is the caller's.
	if err != nil {
		return nil, fmt.Errorf("read module: %w", err)
	}
	plain := uncompressedName(name)
	if plain == name {
		return data, nil
	}
	r, err := decompress(bytes.NewReader(data), name[len(plain):])
	if err != nil {
		return nil, fmt.Errorf("read module: %s: %w", name, err)
	}
	defer r.Close() //nolint:errcheck // read only
	out, err := io.ReadAll(io.LimitReader(r, maxModuleSize+1))
	if err != nil {
		return nil, fmt.Errorf("read module: %s: %w", name, err)
	}
	if len(out) > maxModuleSize {
		return nil, fmt.Errorf("read module: %s: more than %d MiB", name, maxModuleSize>>20)
	}
	return out, nil
}
