package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// tab is a tab of the browser that looks at a page, and notes all that the browser
// complains of.
type tab struct {
	t   *testing.T
	ctx context.Context

	mu         sync.Mutex
	complaints []string
	offline    bool // failed requests are as they should be
}

// openTab opens a page in a tab of its own.
func openTab(t *testing.T, url string) *tab {
	t.Helper()
	ctx, cancel := chromedp.NewContext(browser)
	t.Cleanup(cancel)
	ctx, cancelLate := context.WithTimeout(ctx, 3*time.Minute)
	t.Cleanup(cancelLate)
	b := &tab{t: t, ctx: ctx}
	if err := chromedp.Listen(ctx, b.hear); err != nil {
		t.Fatal(err)
	}
	// Violations of the policy are told to the page, too; and nothing must ever call alert.
	b.do(chromedp.Func(func(ctx context.Context, _ *chromedp.Target) error {
		if _, err := chromedp.Call(ctx, cdplog.Enable, struct{}{}); err != nil {
			return err
		}
		_, err := chromedp.Call(ctx, page.AddScriptToEvaluateOnNewDocument, page.AddScriptToEvaluateOnNewDocumentParams{Source: `
			window.wrong = [];
			addEventListener("securitypolicyviolation", (e) => wrong.push("policy: " + e.violatedDirective + " " + e.blockedURI));
			window.alert = (text) => wrong.push("alert: " + text);`})
		return err
	}))
	b.look(1440, 1000, "light")
	b.do(chromedp.Navigate(url))
	return b
}

// hear runs in the loop that reads what the browser says.
func (b *tab) hear(ev any) {
	text := ""
	switch ev := ev.(type) {
	case *runtime.EventExceptionThrown:
		text = "exception: " + ev.ExceptionDetails.Text
		if ev.ExceptionDetails.Exception != nil {
			text += " " + ev.ExceptionDetails.Exception.Description
		}
	case *runtime.EventConsoleAPICalled:
		text = "console." + string(ev.Type)
		for _, a := range ev.Args {
			text += " " + string(a.Value) + a.Description
		}
	case *cdplog.EventEntryAdded:
		text = string(ev.Entry.Source) + ": " + ev.Entry.Text + " " + ev.Entry.URL
	default:
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.offline || !strings.HasPrefix(text, "network: ") {
		b.complaints = append(b.complaints, text)
	}
}

// expectOffline lets requests fail from now on, or no more.
func (b *tab) expectOffline(is bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.offline = is
}

func (b *tab) do(steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	if err := chromedp.Do(b.ctx, steps...); err != nil {
		b.t.Fatal(err)
	}
}

// evaluate gives what an expression of JavaScript gives.
func evaluate[T any](b *tab, expression string) T {
	b.t.Helper()
	v, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](expression))
	if err != nil {
		b.t.Fatalf("%s: %v", expression, err)
	}
	return v
}

// text is what can be read of the elements that a selector names, hidden ones too.
func (b *tab) text(selector string) string {
	b.t.Helper()
	q, _ := json.Marshal(selector)
	return strings.ReplaceAll(evaluate[string](b, fmt.Sprintf(`[...document.querySelectorAll(%s)].map((e) => e.textContent.replace(/[ \n\t]+/g, " ").trim()).join(" | ")`, q)), "\u202f", "")
}

// says waits until the text of what a selector names contains some words.
func (b *tab) says(selector, words string) {
	b.t.Helper()
	last := ""
	ok := func() bool { last = b.text(selector); return strings.Contains(last, words) }
	end := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(end) {
			b.t.Fatalf("%s never said %q, but: %s", selector, words, last)
		}
		b.do(chromedp.Sleep(50 * time.Millisecond))
	}
}

// look makes the window as wide and high as that, in a colour scheme.
func (b *tab) look(width, height int64, scheme string) {
	b.t.Helper()
	b.do(chromedp.EmulateViewport(width, height), chromedp.Func(func(ctx context.Context, _ *chromedp.Target) error {
		_, err := chromedp.Call(ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
		return err
	}))
}

// fine fails when the browser has complained, or when the page is not well made.
func (b *tab) fine() {
	b.t.Helper()
	b.mu.Lock()
	complaints := b.complaints
	b.complaints = nil
	b.mu.Unlock()
	complaints = append(complaints, evaluate[[]string](b, `wrong.splice(0)`)...)
	for _, c := range complaints {
		b.t.Errorf("the browser complains: %s", c)
	}
	for _, problem := range evaluate[[]string](b, checks) {
		b.t.Errorf("the page: %s", problem)
	}
}

// checks looks at the page as it stands: no double ids, nothing wider than the window, no
// inline style in what the template made, a contrast of 4.5 of every text, and controls
// that have a name.
const checks = `(() => {
	const wrong = [];
	const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
	for (const id of new Set(ids)) if (ids.filter((i) => i === id).length > 1) wrong.push("the id " + id + " is there twice");
	const root = document.documentElement;
	if (root.scrollWidth > root.clientWidth) {
		const wide = [...document.querySelectorAll("main *")].filter((e) => e.getBoundingClientRect().right > root.clientWidth + 1).map((e) => e.nodeName + "#" + e.id + "." + e.className + " " + e.textContent.slice(0, 40));
		wrong.push("it scrolls sideways at " + root.clientWidth + ": " + wide.slice(0, 3).join("; "));
	}
	const inPlot = (e) => e.closest(".chart");
	for (const e of document.querySelectorAll("[style], script:not([src]), style")) if (!inPlot(e)) wrong.push("inline: " + e.outerHTML.slice(0, 80));
	for (const e of document.querySelectorAll("main *")) for (const a of e.attributes) if (a.name.startsWith("on")) wrong.push("a handler: " + e.outerHTML.slice(0, 80));
	const parse = (c) => c.match(/[\d.]+/g).map(Number);
	const light = (c) => { const [r, g, b] = c.map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
	const behind = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c[3] !== 0) return c; } return [255, 255, 255]; };
	const seen = new Set();
	const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
	while (walk.nextNode()) {
		const e = walk.currentNode.parentElement;
		if (!walk.currentNode.data.trim() || !e.checkVisibility() || e.closest(".unseen") || document.body.classList.contains("old")) continue;
		const a = light(parse(getComputedStyle(e).color).slice(0, 3)), b = light(behind(e).slice(0, 3));
		const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
		if (contrast < 4.5) seen.add(e.nodeName + "." + e.className + " has a contrast of " + contrast.toFixed(1));
	}
	wrong.push(...seen);
	for (const e of document.querySelectorAll("input, select, button, a, summary")) if (!(e.labels && e.labels.length || e.textContent.trim() || e.ariaLabel)) wrong.push("no name: " + e.outerHTML.slice(0, 80));
	for (const e of document.querySelectorAll("[role=img]")) if (!e.ariaLabel) wrong.push("no name: " + e.outerHTML.slice(0, 80));
	return wrong;
})()`

// shots is where pictures go; "" = nowhere.
var shots = os.Getenv("AMPCIO_E2E_SHOTS")

// settled waits until the charts have followed the window and everything is drawn.
func (b *tab) settled() {
	b.t.Helper()
	eventually(b.t, "the charts are as wide as their place", func() bool {
		return evaluate[bool](b, `[...document.querySelectorAll(".uplot")].every((u) => u.clientWidth === u.parentNode.clientWidth)`)
	})
	b.do(chromedp.Sleep(50 * time.Millisecond))
}

// picture checks the page at both widths and in both colour schemes, and keeps what it
// looks like.
func (b *tab) picture(name string) {
	b.t.Helper()
	for _, scheme := range []string{"light", "dark"} {
		for _, width := range []int64{390, 1440} {
			b.look(width, 1000, scheme)
			b.settled()
			b.fine()
			if shots == "" {
				continue
			}
			png, err := chromedp.Run(b.ctx, chromedp.FullScreenshot(100))
			if err == nil {
				err = os.WriteFile(filepath.Join(shots, fmt.Sprintf("%s-%d-%s.png", name, width, scheme)), png, 0o644)
			}
			if err != nil {
				b.t.Fatal(err)
			}
		}
	}
	b.look(1440, 1000, "light")
}
