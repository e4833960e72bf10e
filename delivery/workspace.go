package delivery

import (
	"context"
	"errors"
	"fmt"

	"ampcio/queue"
)

// enterWorkspace compares the workspace that the keys lead to with the one that the
// ledger's events were accepted for. Another one, with events pending, needs a
// person's word (adopt). unwritten is the ledger's: the disk is full, and a crash may
// forget what is in force now; any other trouble of it ends the consumer.
func (s *Sync) enterWorkspace(account Account, adopt bool) (e *AccountError, unwritten error) {
	from, to := s.source.Workspace(), account.EnvironmentID
	if to == 0 { // Customer.io has not told
		return nil, nil
	}
	err := s.source.EnterWorkspace(to, adopt)
	switch {
	case errors.Is(err, queue.ErrOtherWorkspace):
		return otherWorkspace(s.o.Name, from, to), nil
	case err != nil:
		s.o.Log.Warn("the workspace is not written down yet", "workspace", to, "error", err)
		return nil, fmt.Errorf("write down workspace %d: %w", to, err)
	case from != 0 && from != to && adopt:
		s.o.Log.Warn("another workspace was adopted; what is pending goes to it", "from", from, "to", to)
	case from != 0 && from != to:
		s.o.Log.Info("the keys are of another workspace now; nothing was pending for the old one", "from", from, "to", to)
	}
	return nil, nil
}

func otherWorkspace(sync string, from, to int64) *AccountError {
	return &AccountError{
		Reason: "other_workspace", Blocked: true, other: OtherWorkspace{From: from, To: to},
		Detail: fmt.Sprintf("events are pending for workspace %d, and the Site ID and key are of workspace %d", from, to),
		Advice: fmt.Sprintf("these events were accepted for workspace %d; ampcio sync adopt %s delivers them to workspace %d, or put the old Site ID and key back", from, sync, to),
	}
}

// errNotRunning is the answer to those who want something of a sync that is stopped.
var errNotRunning = errors.New("the sync is not delivering: it is stopped")

// Adopt lets what is pending go to the workspace that the keys lead to now, although
// it was accepted for another one: the region endpoint is asked again, and its
// workspace is taken. Where nothing is blocked it does nothing. An error that is an
// *AccountError says why the door stays shut.
func (s *Sync) Adopt(ctx context.Context) error {
	answer := make(chan error, 1)
	select {
	case s.questions <- question{adopt: true, answer: answer}:
	case <-s.ended:
		return errNotRunning
	case <-ctx.Done():
		return fmt.Errorf("adopt the workspace: %w", ctx.Err())
	}
	select {
	case err := <-answer:
		return err
	case <-s.ended:
		return errNotRunning
	case <-ctx.Done():
		return fmt.Errorf("adopt the workspace: %w", ctx.Err())
	}
}
