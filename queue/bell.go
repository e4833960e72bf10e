package queue

// bell is what some wait for and others ring. Ringing costs nothing while nobody waits:
// most records end while everybody is at work. It is guarded by the consumer.
type bell struct{ told chan struct{} }

// wait gives a channel that is closed by the next ring.
func (b *bell) wait() <-chan struct{} {
	if b.told == nil {
		b.told = make(chan struct{})
	}
	return b.told
}

func (b *bell) ring() {
	if b.told != nil {
		close(b.told)
		b.told = nil
	}
}
