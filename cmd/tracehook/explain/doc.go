// Package explain says why an object of a cluster exists, who wanted it, and what became of it.
//
//	look.go     the object, its owners, its Events, what it made    ← API server
//	store.go    the traces of all that                              ← trace store
//	audit.go    the requests behind it                              ← audit log
//	  │
//	join.go     everything that was read → Story                    pure
//	  ├─ stamp.go    annotations → cause
//	  ├─ fields.go   managedFields → who wrote what
//	  ├─ stages.go   object, Events → stages (package lifecycle)
//	  └─ traces.go   spans → the command, how long, what was slow
//	  │
//	print.go    Story → text; JSON is the Story itself (story.go)
//
//	find.go     trace id → the objects that carry it                ← API server
//
// Every source but the API server is optional. What is not known is part of the answer, with the source that would tell.
package explain
