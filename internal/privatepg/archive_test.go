package privatepg

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"
)

// txz packs the machine's PostgreSQL as a repository has it: bin at the root of a tar file, in the xz format. What it
// leaves out is found where the build put it.
func txz(t *testing.T, names ...string) []byte {
	t.Helper()
	root := filepath.Dir(installed(t))
	for _, library := range []string{"dict_snowball", "plpgsql"} { // initdb loads them from beside bin
		for _, found := range must(filepath.Glob(filepath.Join(root, "lib", library+".*")))(t) {
			names = append(names, filepath.Join("lib", filepath.Base(found)))
		}
	}
	var buffer bytes.Buffer
	writer := tar.NewWriter(&buffer)
	for _, name := range names {
		content := must(os.ReadFile(filepath.Join(root, name)))(t)
		header := tar.Header{Name: name, Mode: 0o755, Size: int64(len(content)), Typeflag: tar.TypeReg}
		err := writer.WriteHeader(&header)
		if err == nil {
			_, err = writer.Write(content)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := writer.Close(); err != nil {
		t.Fatal(err)
	}
	return xz(buffer.Bytes())
}

// xz wraps data in the xz format (version 1.2 of its specification) without compressing it: with the race detector,
// unpacking a compressed server takes ten seconds.
func xz(data []byte) []byte {
	le, be := binary.LittleEndian, binary.BigEndian
	sum := func(b []byte) []byte { return le.AppendUint32(nil, crc32.ChecksumIEEE(b)) }
	pad := func(b []byte) []byte { return append(b, make([]byte, (4-len(b)%4)%4)...) }
	flags := []byte{0, 1} // blocks are checked with CRC32

	// One block, with the LZMA2 filter and a dictionary of 1 MiB.
	header := []byte{2, 0, 0x21, 1, 16, 0, 0, 0}
	block := append(header, sum(header)...)
	for control, rest := byte(1), data; len(rest) > 0; control = 2 { // 1 resets the dictionary
		chunk := rest[:min(len(rest), 1<<16)]
		rest = rest[len(chunk):]
		block = be.AppendUint16(append(block, control), uint16(len(chunk)-1))
		block = append(block, chunk...)
	}
	block = append(block, 0)
	unpadded := len(block) + 4
	block = append(pad(block), sum(data)...)

	index := binary.AppendUvarint([]byte{0, 1}, uint64(unpadded))
	index = pad(binary.AppendUvarint(index, uint64(len(data))))
	index = append(index, sum(index)...)
	footer := append(le.AppendUint32(nil, uint32(len(index)/4-1)), flags...)

	stream := append([]byte("\xfd7zXZ\x00"), flags...)
	stream = append(stream, sum(flags)...)
	stream = append(stream, block...)
	stream = append(stream, index...)
	stream = append(stream, sum(footer)...)
	stream = append(stream, footer...)
	return append(stream, "YZ"...)
}

// jar is what a repository serves: a zip file with the archive in it.
func jar(t *testing.T, txz []byte) []byte {
	t.Helper()
	var buffer bytes.Buffer
	writer := zip.NewWriter(&buffer)
	entry, err := writer.CreateHeader(&zip.FileHeader{Name: "postgres-test.txz", Method: zip.Store})
	if err == nil {
		_, err = entry.Write(txz)
	}
	if err = errors.Join(err, writer.Close()); err != nil {
		t.Fatal(err)
	}
	return buffer.Bytes()
}
