// Package lifecycle tells what became of an object that carries its cause: a Pod that was scheduled,
// pulled images and became ready, a Deployment that was rolled out, a Job that ran.
//
// # Pure: object in, stages out
//
//	for _, stage := range lifecycle.Pod(pod, events...) {
//		fmt.Println(stage.Name, stage.Container, stage.Start, stage.End, stage.Failure.Reason)
//	}
//
// [Pod], [Deployment], [StatefulSet], [DaemonSet], [Job] and [PersistentVolumeClaim] read what the
// cluster says about one object, and call nobody. All times are the cluster's. A [Stage] without an
// end goes on. Most times in the API are whole seconds; Stage.Resolution says so.
//
//	stage                 from                                      to
//	Pod                   creationTimestamp                         the same moment: what the others hang below
//	start Pod             creationTimestamp                         first Ready, or phase Failed
//	schedule              creationTimestamp                         PodScheduled; a failure: since when it is False
//	prepare sandbox       PodScheduled                              PodReadyToStartContainers (Kubernetes 1.29)
//	pull image            the Event Pulled less what it says it took  the Event Pulled; a failure: the Event Failed
//	start init container  end of the one before, or the sandbox     startedAt
//	run init container    startedAt                                 finishedAt
//	start container       Initialized, or the sandbox               startedAt
//	restart container     finishedAt of the run before              startedAt
//	run container         startedAt                                 finishedAt, unless the Pod is deleted
//	become ready          the last startedAt                        Ready
//	back off              finishedAt, or the Event BackOff          the same moment; once for each reason
//	probe                 the Event Unhealthy, once for each kind   the same moment
//	mount volumes         the Event FailedMount or FailedAttachVolume  the same moment
//	evict, preempt Pod    the condition DisruptionTarget            the same moment
//	delete Pod            the request: deletionTimestamp less its grace  seen to be gone, by who watches
//	roll out              the stored cause                          complete, or ProgressDeadlineExceeded
//	run Job               the stored cause, or creationTimestamp    Complete or Failed
//	bind volume claim     creationTimestamp                         the status write that says Bound
//	get endpoint          the stored cause of a Service             the first Ready of a Pod that is a ready endpoint of it
//
// A [Controller] tells of a claim only where a Pod waited for it, and of a Service only where it carries a cause and its first
// ready endpoint is younger than that. Of a Service that was older than MaxAge when the Controller came to know it nothing is told:
// nobody can know any more which endpoint was its first.
// Where the end of a roll-out is when the status was last written, and its cause was older than MaxAge when the Controller started, it is
// not told either: the status may have been written again.
//
// A stage has a key ([Stage.Key]) that follows from the object alone. Two observers make the same keys.
//
// # A controller: stages become spans
//
// [New] makes a [Controller] that watches a cluster with client-go's informers. It keeps a few words of each object, and tells each stage
// that has ended as a span, once. Its provider needs an IDGenerator that asks [WantedIDs], so that whoever tells a stage again makes the
// same span. It has no state of its own: a [Mark] says how far has been told, and whoever runs it keeps that where it likes.
// `tracehook lifecycle` keeps it on its Lease.
//
//	watch.go       an object → what is kept of it, and its stages
//	controller.go  what is new of them, in the order in which it was seen
//	spans.go       a stage → a span below the cause, or linked to it
//	mark.go        how far has been told
package lifecycle
