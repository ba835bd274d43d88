package config_test

import (
	"bytes"
	"testing"

	"github.com/virtplug/virtplug/core/config"
	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
)

func TestReferenceShowsEverySetting(t *testing.T) {
	t.Parallel()
	p := plugins()
	var buf bytes.Buffer
	if err := config.WriteReference(&buf, []*pluginv1.DescribeResponse{p["block"], p["console"], p["net"], {Name: "empty", Description: "Nothing to set."}}); err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/reference.md", buf.Bytes())
}
