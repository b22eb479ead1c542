package webhook

// What an update wants: two states of an object in, whether they differ in more than how much of it
// runs, and where, out. Pure; no errors: what cannot be read differs.

import (
	"encoding/binary"
	"hash/maphash"
	"slices"
	"time"
)

// How much of an object runs: what `kubectl scale` and autoscalers write, and what stops it and lets it go.
const (
	replicasField = "replicas"
	suspendField  = "suspend"
)

// operationField is a top-level field that holds an order, which a controller carries out and removes: Argo CD's
// Application has it beside its spec. An order is no state that is wanted.
const operationField = "operation"

// placementFields are what a queue writes when it lets an object go, to say where it runs.
var placementFields = []string{"nodeSelector", "tolerations", "affinity", "schedulingGates", "parallelism", "metadata", "podTemplateOverrides"}

// onlyScaled says whether two states of an object differ, outside metadata, status and operation, in nothing
// but members `replicas` and `suspend` of its spec, at any depth. Where `suspend` differs, placement may, too.
func onlyScaled(a, b *Object, deadline time.Time) bool {
	if a.otherHash != b.otherHash {
		return false
	}
	specs := [2][]byte{a.spec, b.spec}
	same := func(leaveOut ...string) bool {
		seed := maphash.MakeSeed()
		var sums [2]uint64
		for i, spec := range specs {
			if spec == nil {
				return false
			}
			h := outline{scanner: scanner{doc: spec, deadline: deadline}, leaveOut: leaveOut}
			h.hash.SetSeed(seed)
			if h.value() != nil {
				return false
			}
			sums[i] = h.hash.Sum64()
		}
		return sums[0] == sums[1]
	}
	if same(replicasField, suspendField) {
		return true
	}
	placed := slices.Concat(placementFields, []string{replicasField})
	return same(append(placed, suspendField)...) && !same(placed...)
}

// outline is a hash of a JSON value without some members of its objects.
type outline struct {
	scanner  scanner
	leaveOut []string
	hash     maphash.Hash
}

// mostOutlined is how deep an outline goes: it calls itself, and no pod template is that deep.
const mostOutlined = 100

func (o *outline) value() error {
	next := o.scanner.peek()
	if len(o.scanner.levels) >= mostOutlined {
		next = 0 // deeper nothing is left out
	}
	switch next {
	case '{':
		_ = o.hash.WriteByte('{')
		err := o.scanner.object(func(name []byte) error {
			if slices.Contains(o.leaveOut, string(name)) {
				return o.scanner.skip()
			}
			// By its length: unescaped, a name may hold what would end it.
			_, _ = o.hash.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(name))))
			_, _ = o.hash.Write(name)
			return o.value()
		})
		_ = o.hash.WriteByte('}')
		return err
	case '[':
		_ = o.hash.WriteByte('[')
		err := o.scanner.array(func(int) error { return o.value() })
		_ = o.hash.WriteByte(']')
		return err
	}
	value, err := o.scanner.value()
	_, _ = o.hash.Write(value)
	_ = o.hash.WriteByte(',')
	return err
}
