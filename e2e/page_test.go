// Package e2e looks at the status page as people do: in a browser, of the real binary,
// with the real sandbox. It is a module of its own, so that the browser's driver is none
// of ampcio's.
package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

var (
	binary  string          // ampcio
	browser context.Context // of a Chromium that runs
)

func TestMain(m *testing.M) {
	code, err := withBrowser(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// withBrowser builds ampcio, starts a Chromium, and runs the tests.
func withBrowser(m *testing.M) (int, error) {
	chromium := os.Getenv("CHROMIUM")
	if chromium == "" {
		chromium = "chromium-headless-shell"
	}
	dir, err := os.MkdirTemp("", "ampcio-e2e-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "ampcio")
	build := exec.Command("go", "build", "-o", binary, ".")
	build.Dir = ".."
	if out, err := build.CombinedOutput(); err != nil {
		return 1, fmt.Errorf("build ampcio: %w\n%s", err, out)
	}
	options := []chromedp.ExecAllocatorOption{chromedp.ExecPath(chromium), chromedp.Headless, chromedp.NoFirstRun, chromedp.DisableGPU,
		chromedp.UserDataDir(filepath.Join(dir, "profile"))}
	if os.Getuid() == 0 {
		options = append(options, chromedp.NoSandbox)
	}
	allocator, cancel := chromedp.NewExecAllocator(context.Background(), options...)
	defer cancel()
	var close context.CancelFunc
	browser, close = chromedp.NewContext(allocator)
	defer close()
	if err := chromedp.Do(browser); err != nil {
		return 1, fmt.Errorf("start %s: %w", chromium, err)
	}
	code := m.Run()
	return code, chromedp.Cancel(browser)
}

func TestEmptyQueue(t *testing.T) {
	t.Parallel()
	h := newHouse(t, houseSync{name: "production"})
	b := openTab(t, h.page)
	b.says("#headline", "All is well.")
	b.says("#sync-production summary", "production well")
	b.says("#sync-production .meta", "delivering")
	b.says("#house", "Give an SDK this server URL: http://"+h.listen+"/2/httpapi")
	b.says("#house", "not reloaded since")
	b.says("#rates-legend", "in ")
	if n := evaluate[int](b, `document.querySelectorAll(".chart canvas").length`); n != 2 {
		t.Errorf("%d charts", n)
	}
	b.picture("empty")
}

// In full flow the figures change by themselves, and what somebody has folded open,
// chosen or marked stays.
func TestFullFlow(t *testing.T) {
	t.Parallel()
	h := newHouse(t, houseSync{name: "production", fault: "latency=20ms", events: "*"})
	h.sendMany(2_000)
	h.send(event{Type: "Debug Heartbeat", User: "user-00001"})
	b := openTab(t, h.page)
	b.do(chromedp.Click("input[value='1h']"), chromedp.Click("#sync-production summary"), chromedp.Focus("#sync-production summary"))
	if open := evaluate[bool](b, `document.querySelector("#sync-production").open`); open {
		t.Error("it cannot be folded")
	}
	evaluate[bool](b, `(window.same = document.querySelector("#sync-production summary"), true)`)
	before := b.text("#house dd")
	h.sendMany(3_000)
	b.says("#house", "5,001 events in")
	b.says("#sync-production .figures", "First try5,000") // what is filtered is not tried
	b.says("#rates-legend", "at most ")
	if b.text("#house dd") == before {
		t.Error("nothing has changed")
	}
	if kept := evaluate[bool](b, `same.isConnected && document.activeElement === same && !document.querySelector("#sync-production").open && document.querySelector("input[value='1h']").checked && location.hash === "#last-1h"`); !kept {
		t.Error("what somebody has chosen was taken away")
	}
	b.do(chromedp.Click("#sync-production summary"))
	b.says("#sync-production .tables", "“Debug Heartbeat”")
	b.says("#sync-production .books", "The books balance")
	b.picture("flow")
}

func TestOutage(t *testing.T) {
	t.Parallel()
	h := newHouse(t, houseSync{name: "production"})
	h.sendMany(500)
	b := openTab(t, h.page)
	b.says("#headline", "All is well.")
	h.fault("production", "outage=60s")
	h.sendMany(1_500)
	b.says("#headline", "production is unreachable.")
	b.says("#head .why", "http_503")
	b.says("#head .todo", "ampcio sync retry production")
	b.says("#said", "production is unreachable.")
	if icon := evaluate[string](b, `document.querySelector("link[rel=icon]").getAttribute("href")`); icon != "page/warning.svg" {
		t.Errorf("the icon is %s", icon)
	}
	b.picture("outage")
	h.fault("production", "outage=none")
	b.says("#headline", "All is well.")
	b.says("#said", "All is well.")
	b.fine()
}

func TestBlocked(t *testing.T) {
	t.Parallel()
	h := newHouse(t, houseSync{name: "production", key: "wrong-key"}, houseSync{name: "staging"})
	h.sendMany(1_000)
	b := openTab(t, h.page)
	b.says("#headline", "production is blocked.")
	b.says("#head .why", "does not accept the Site ID and API key")
	b.says("#head .todo", "systemctl restart ampcio")
	b.says("#sync-production .meta", "nothing is lost")
	b.says("#sync-production .line", "1,000 waiting")
	b.says("#sync-staging summary", "staging well")
	if text := b.text("html"); strings.Contains(text, "wrong-key") || strings.Contains(text, trackKey) {
		t.Error("a key is on the page")
	}
	b.picture("blocked")
	// One of them can be looked at alone.
	b.do(chromedp.SetValue("#sync", "=staging"))
	evaluate[bool](b, `document.querySelector("#sync").dispatchEvent(new Event("change"))`)
	b.says("#depth-legend", "waiting 0")
	b.fine()
}

func TestTenSyncs(t *testing.T) {
	t.Parallel()
	var syncs []houseSync
	for i, name := range []string{"production", "staging", "mobile", "web-shop", "newsletter", "loyalty", "partners_de", "partners_fr", "sandbox", "a-name-that-is-as-long-as-it-gets"[:32]} {
		y := houseSync{name: name}
		switch i {
		case 2:
			y.key = "wrong-key"
		case 5:
			y.fault = "refuse_event=Signed Up"
		case 4:
			y.fault = "poison=user-00077"
		}
		syncs = append(syncs, y)
	}
	h := newHouse(t, syncs...)
	h.sendMany(400)
	h.send(event{Type: "Signed Up", User: "user-00001"}, event{Type: "Order Completed", User: "user-00077"})
	b := openTab(t, h.page)
	b.says("#headline", "mobile is blocked.")
	b.says("#head .others", "1 other sync needs a look")
	b.do(chromedp.Click("#sync-newsletter summary"))
	b.says("#sync-newsletter table", "http_500")
	b.says("#sync-newsletter table", "of user ") // a real example, of a hash
	if text := b.text("main"); strings.Contains(text, "user-000") {
		t.Error("a user's id is on the page")
	}
	b.says("#sync-loyalty summary", "refused")
	b.says("#sync-loyalty .tables", "“Signed Up”")
	if n := evaluate[int](b, `document.querySelectorAll("details.sync").length`); n != 10 {
		t.Errorf("%d syncs", n)
	}
	if open := b.text("details[open] h3"); !strings.Contains(open, "mobile") || strings.Contains(open, "staging") {
		t.Errorf("at length: %s", open)
	}
	b.picture("ten")
}

// Whatever senders name their events, it stays text.
func TestHostileNames(t *testing.T) {
	t.Parallel()
	hostile := []string{
		`<b><img src=x onerror=alert(1)>"><script>alert(2)</script></table></main><h1>owned`,
		"<b>' onmouseover='alert(3)' {{.Version}} ${alert(4)} <svg/onload=alert(5)> \u202egnp.exe \u2066",
		`<b>&lt;script&gt;alert(6)&lt;/script&gt;<!--`, "<b>" + strings.Repeat("W", 80),
	}
	h := newHouse(t, houseSync{name: "production", fault: "refuse_event=<img src=x onerror=alert(7)>"})
	h.send(event{Type: `<img src=x onerror=alert(7)>`, User: `"><script>alert(8)</script>`})
	b := openTab(t, h.page)
	for _, name := range hostile {
		h.send(event{Type: name, User: name})
		b.says("#sync-production .tables", "“"+strings.Join(strings.Fields(name), " "))
	}
	b.says("#sync-production .tables", `“<img src=x onerror=alert(7)>”`)
	if n := evaluate[int](b, `document.querySelectorAll("main img, main script, main h1").length`); n != 1 {
		t.Errorf("%d elements that an event brought", n-1)
	}
	b.picture("hostile")
	// Also those that were there before the script was.
	b.do(chromedp.Reload())
	b.says("#sync-production .tables", `“<img src=x onerror=alert(7)>”`)
	b.fine()
}

// A daemon that is gone is said to be gone, and its figures are not shown as new.
func TestDaemonGoneAndBack(t *testing.T) {
	t.Parallel()
	h := newHouse(t, houseSync{name: "production"})
	h.sendMany(300)
	b := openTab(t, h.page)
	b.says("#house", "300 events in")
	b.expectOffline(true)
	h.daemon.end(t, os.Kill)
	b.says("#silence", "No answer since ")
	if state := evaluate[string](b, `[document.body.className, document.title, document.querySelector("link[rel=icon]").getAttribute("href"), document.querySelector("#silence").checkVisibility(), document.querySelector("#silence").role].join(" ")`); state != "old No answer · ampcio page/unknown.svg true alert" {
		t.Errorf("it is %s", state)
	}
	since := b.text("#silence")
	b.picture("gone")
	b.do(chromedp.Sleep(2500 * time.Millisecond))
	if now := b.text("#silence"); now != since {
		t.Errorf("%q became %q", since, now)
	}
	h.open()
	b.says("#said", "ampcio answers again.")
	b.expectOffline(false)
	if evaluate[bool](b, `document.body.classList.contains("old") || !document.querySelector("#silence").hidden`) {
		t.Error("it still looks old")
	}
	b.says("#house", "0 events in")
	// What the charts showed is still there: ampcio was killed, so only that which it had written.
	b.fine()
}

// One that hangs is as good as gone.
func TestDaemonHangs(t *testing.T) {
	t.Parallel()
	h := newHouse(t, houseSync{name: "production"})
	b := openTab(t, h.page)
	b.says("#headline", "All is well.")
	b.expectOffline(true)
	if err := h.daemon.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	b.says("#silence", "No answer since ")
	if err := h.daemon.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	b.says("#said", "ampcio answers again.")
	b.fine()
}

// A tab that nobody sees asks for nothing, and has not grown old unnoticed when it is seen again.
func TestHiddenTab(t *testing.T) {
	t.Parallel()
	h := newHouse(t, houseSync{name: "production"})
	b := openTab(t, h.page)
	b.says("#headline", "All is well.")
	evaluate[bool](b, `(window.fetched = 0, window.fetch = new Proxy(window.fetch, {apply: (f, self, args) => (fetched++, f.apply(self, args))}), true)`)
	hide := func(hidden bool) {
		evaluate[bool](b, fmt.Sprintf(`(Object.defineProperty(document, "hidden", {configurable: true, get: () => %v}), document.dispatchEvent(new Event("visibilitychange")), true)`, hidden))
	}
	hide(true)
	asked := evaluate[int](b, `fetched`)
	b.do(chromedp.Sleep(5500 * time.Millisecond))
	if now := evaluate[int](b, `fetched`); now != asked {
		t.Errorf("it asked %d times while it was hidden", now-asked)
	}
	h.sendMany(7)
	hide(false)
	b.says("#house", "7 events in")
	b.fine()
}

// All of it can be done without a mouse.
func TestKeyboard(t *testing.T) {
	t.Parallel()
	h := newHouse(t, houseSync{name: "production"}, houseSync{name: "staging"})
	b := openTab(t, h.page)
	b.says("#rates-legend", "in ")
	var order []string
	for range 4 {
		b.do(chromedp.KeyEvent("\t"))
		order = append(order, evaluate[string](b, `(({id, name, nodeName, parentNode}) => id || name || nodeName + " of " + parentNode.id)(document.activeElement)`))
	}
	if got := strings.Join(order, ", "); got != "sync, span, SUMMARY of sync-production, SUMMARY of sync-staging" {
		t.Errorf("tab goes to %s", got)
	}
	b.do(chromedp.KeyEvent(" "))
	if evaluate[bool](b, `document.querySelector("#sync-staging").open`) {
		t.Error("the space bar does not fold")
	}
	if outline := evaluate[string](b, `getComputedStyle(document.activeElement).outlineStyle`); outline == "none" {
		t.Error("the focus cannot be seen")
	}
	b.fine()
}
