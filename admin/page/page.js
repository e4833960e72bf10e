// Keeps the status page as of now. It asks for the page again and takes over what has changed: elements that it makes
// itself, of names and attributes that it knows, and text as text. What is shown of events, syncs and answers can only
// become text.
"use strict";
(() => {
	const every = 2000; // ms between an answer and the next question
	const patience = 5000; // ms after which no answer is none
	const known = new Set("b code caption dd details div dl dt fieldset h1 h2 h3 h4 header i input label legend li main noscript ol option p rect section select small span summary svg table tbody td th thead time tr ul".split(" "));
	const attributes = /^(aria-[a-z]+|class|data-[a-z]+|datetime|height|hidden|id|name|preserveAspectRatio|role|scope|title|type|value|viewBox|width|x|y)$/;
	const byId = (id) => document.getElementById(id);

	// take makes `to` what `from` is, and leaves alone what is the same: focus, selections and what is folded open stay.
	function take(to, from) {
		if (to.nodeName === "DETAILS" && to.dataset.level === "ok" && from.dataset.level !== "ok") to.open = true;
		for (const {name} of [...to.attributes]) if (attributes.test(name) && !from.hasAttribute(name)) to.removeAttribute(name);
		for (const {name, value} of from.attributes) if (attributes.test(name) && to.getAttribute(name) !== value) to.setAttribute(name, value);
		if (to.hasAttribute("data-keep")) return;
		let at = to.firstChild;
		for (const want of from.childNodes) {
			let have = at;
			if (want.id) {
				have = byId(want.id);
				if (have && have.parentNode !== to) have = null;
			} else if (!at || at.id || at.nodeName !== want.nodeName) {
				have = null;
			}
			if (!have) have = make(want);
			if (have !== at) to.insertBefore(have, at);
			if (want.nodeType !== Node.TEXT_NODE) take(have, want);
			else if (have.data !== want.data) have.data = want.data;
			at = have.nextSibling;
		}
		while (at) {
			const next = at.nextSibling;
			at.remove();
			at = next;
		}
	}

	function make(want) {
		if (want.nodeType === Node.TEXT_NODE) return document.createTextNode("");
		if (!known.has(want.localName)) throw new Error("the page has an unknown element: " + want.localName);
		const made = document.createElementNS(want.namespaceURI, want.localName);
		if (want.hasAttribute("open")) made.open = true;
		return made;
	}

	// Times are those of whoever looks.
	const two = (n) => String(n).padStart(2, "0");
	const clock = (d) => two(d.getHours()) + ":" + two(d.getMinutes()) + ":" + two(d.getSeconds());
	const date = (d) => d.getFullYear() + "-" + two(d.getMonth() + 1) + "-" + two(d.getDate()) + " " + two(d.getHours()) + ":" + two(d.getMinutes());
	function localTimes(root) {
		for (const t of root.querySelectorAll("time[data-as]")) {
			const d = new Date(t.dateTime);
			t.textContent = t.dataset.as === "clock" ? clock(d) : date(d);
			t.title = t.dateTime;
		}
	}

	let answered = new Date();
	let gone = false;
	let asking = 0;
	const notAsked = "Not asked";

	function icon(level) {
		const link = document.querySelector("link[rel=icon]");
		const href = "page/" + level + ".svg";
		if (link.getAttribute("href") !== href) link.setAttribute("href", href);
	}

	function silence(why, said) {
		const head = document.createElement("b");
		head.textContent = why + " since " + clock(answered) + ".";
		const text = (said ? "It says “" + said + "”. " : "") + "What is below is as it was then.";
		if (byId("silence").textContent !== head.textContent + " " + text) byId("silence").replaceChildren(head, " " + text);
		byId("silence").hidden = false;
		document.body.classList.add("old");
		gone = why !== notAsked;
		document.title = why + " · ampcio";
		icon("unknown");
	}

	async function ask() {
		const mine = ++asking;
		if (byId("silence").hidden && Date.now() - answered > every + patience) silence(notAsked); // it was hidden, or the machine slept
		let why = "", said = "";
		try {
			const answer = await fetch("./", {cache: "no-store", signal: AbortSignal.timeout(patience)});
			const text = await answer.text();
			if (mine !== asking) return;
			if (answer.ok) show(new DOMParser().parseFromString(text, "text/html"));
			else [why, said] = ["ampcio cannot say how it is", text.trim().slice(0, 300)];
		} catch (e) {
			if (mine !== asking) return;
			if (e instanceof TypeError || e.name === "TimeoutError" || e.name === "AbortError") why = "No answer";
			else throw e;
		}
		if (why) silence(why, said);
		askLater(mine);
	}

	function askLater(mine) {
		setTimeout(() => {
			if (mine === asking && !document.hidden) ask();
		}, every);
	}

	function show(page) {
		if (page.documentElement.dataset.build !== document.documentElement.dataset.build) {
			location.reload(); // another version answers
			return;
		}
		const before = byId("headline").textContent;
		localTimes(page);
		take(byId("main"), page.getElementById("main"));
		answered = new Date();
		const back = gone;
		gone = false;
		byId("silence").hidden = true;
		document.body.classList.remove("old");
		document.title = page.title;
		icon(byId("main").dataset.level);
		const headline = byId("headline").textContent;
		if (headline !== before || back) byId("said").textContent = (back ? "ampcio answers again. " : "") + headline;
		if (back) askPast();
	}

	document.addEventListener("visibilitychange", () => {
		if (document.hidden) {
			asking++; // what is under way counts for nothing
			return;
		}
		ask();
		askPast();
	});

	// Charts.
	let past = null;
	let asked = 0;
	let plots = [];
	const span = () => document.querySelector("input[name=span]:checked").value;
	const unit = (n, digits) => n.toLocaleString("en", {maximumFractionDigits: digits});
	const compact = (n) => n.toLocaleString("en", {notation: "compact", maximumFractionDigits: n < 1 ? 2 : 1});
	const rate = (n) => n == null ? "–" : unit(n, n < 100 ? 1 : 0) + "/s";
	function age(s) {
		if (s == null) return "–";
		const units = [[86400, "d"], [3600, "h"], [60, "m"], [1, "s"]];
		const i = units.findIndex(([n]) => s >= n);
		if (i < 0) return "0s";
		const rest = i < 3 ? Math.floor(s % units[i][0] / units[i + 1][0]) : 0;
		return Math.floor(s / units[i][0]) + units[i][1] + (rest ? "\u202f" + rest + units[i + 1][1] : "");
	}

	async function askPast() {
		const mine = ++asked;
		try {
			const answer = await fetch("history?span=" + span(), {cache: "no-store", signal: AbortSignal.timeout(patience)});
			if (answer.ok) {
				const read = await answer.json();
				if (mine !== asked) return;
				past = read;
				draw();
			}
		} catch (e) {
			if (!(e instanceof TypeError || e.name === "TimeoutError" || e.name === "AbortError")) throw e;
		}
		const wait = past && past.step_s > 10 ? 60000 : 5000;
		setTimeout(() => {
			if (mine === asked && !document.hidden) askPast();
		}, wait);
	}

	function chosen() {
		const name = byId("sync").value;
		if (!name) return past.syncs.length === 1 ? past.syncs[0] : past.all;
		const empty = past.all.in.map(() => null);
		return past.syncs.find((s) => "=" + s.name === name) || {in: empty, out: empty, pending: empty, oldest_s: empty};
	}

	const last = (ns) => ns.findLast((n) => n != null);
	const most = (ns) => ns.reduce((a, n) => n != null && (a == null || n > a) ? n : a, null);

	// legend says what the lines are and, in numbers, what they show at a point, or now.
	function legend(id, series, at) {
		const p = byId(id);
		p.replaceChildren(...series.map(({key, name, ns, say}) => {
			const span = document.createElement("span");
			const swatch = document.createElement("i");
			swatch.className = "key" + key;
			const value = document.createElement("b");
			value.textContent = say(at == null ? last(ns) : ns[at]);
			span.append(swatch, name + " ", value, at == null ? ", at most " + say(most(ns)) : "");
			return span;
		}));
		if (at != null) {
			const when = document.createElement("span");
			when.textContent = date(new Date((past.from + at * past.step_s) * 1000)).slice(-5);
			p.append(when);
		}
	}

	function draw() {
		const s = chosen();
		const times = s.in.map((_, i) => past.from + i * past.step_s);
		const rates = [{key: " dashed", name: "in", ns: s.in, say: rate}, {key: "", name: "out", ns: s.out, say: rate}];
		const depth = [{key: "", name: "waiting", ns: s.pending, say: (n) => n == null ? "–" : unit(n, 0)}, {key: " dashed", name: "oldest", ns: s.oldest_s, say: age}];
		const label = document.querySelector("input[name=span]:checked").parentNode.textContent.trim();
		for (const [id, series, what] of [["rates", rates, "Events in and out a second"], ["depth", depth, "Events that wait, and how long the oldest does"]]) {
			legend(id + "-legend", series);
			byId(id).setAttribute("aria-label", what + ", last " + label + ": " + byId(id + "-legend").textContent);
		}
		if (plots.length === 0) plots = [plot("rates", rates, "y"), plot("depth", depth, "age")];
		for (const [i, series] of [rates, depth].entries()) {
			plots[i].series = series;
			plots[i].u.setData([times, ...series.map((one) => one.ns)]);
		}
	}

	function plot(id, series, second) {
		const box = byId(id);
		const style = getComputedStyle(document.documentElement);
		const color = (name) => style.getPropertyValue("--" + name).trim();
		const font = "12px system-ui, -apple-system, \"Segoe UI\", Roboto, sans-serif";
		const grid = {stroke: color("rule"), width: 1};
		const axis = (more) => ({stroke: color("soft"), font, grid, ticks: {show: false}, ...more});
		// A point whose neighbours are unknown makes no line: it is drawn as a point.
		const alone = (u, i) => u.data[i].flatMap((n, at, ns) => n != null && ns[at - 1] == null && ns[at + 1] == null ? [at] : []);
		const points = (c) => ({show: true, size: 5, stroke: c, fill: c, filter: alone});
		const line = {stroke: color("out"), width: 1.75, fill: color("area"), points: points(color("out"))};
		const dashed = {stroke: color("in"), width: 1.75, dash: [5, 4], points: points(color("in"))};
		const lines = id === "rates" ? [dashed, line] : [line, dashed];
		const upTo = (least) => (u, min, max) => [0, Math.max(least, (max || 0) * 1.12)];
		const mine = {series};
		const axes = [
			axis({space: 64, values: (u, ts) => ts.map((t) => date(new Date(t * 1000)).slice(-5))}),
			axis({size: 52, space: 36, values: (u, ns) => ns.map((n) => compact(n))}),
		];
		if (second === "age") axes.push(axis({scale: "age", side: 1, size: 60, space: 26, grid: {show: false}, values: (u, ns) => ns.map(age),
			incrs: [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400, 172800, 604800]}));
		mine.u = new uPlot({
			width: box.clientWidth, height: box.clientHeight, legend: {show: false}, pxAlign: 0, padding: [8, second === "age" ? 0 : 60, 0, 0],
			cursor: {y: false, drag: {x: false, y: false}, points: {size: 7}},
			scales: {y: {range: upTo(1)}, age: {range: upTo(10)}},
			axes, series: [{}, {...lines[0], scale: "y"}, {...lines[1], scale: second}],
			hooks: {setCursor: [(u) => legend(id + "-legend", mine.series, u.cursor.idx)]},
		}, null, box);
		return mine;
	}

	function redraw() {
		for (const p of plots) p.u.destroy();
		plots = [];
		if (past) draw();
	}

	for (const input of document.querySelectorAll("input[name=span]")) {
		if (location.hash === "#last-" + input.value) input.checked = true;
		input.addEventListener("change", () => {
			history.replaceState(null, "", "#last-" + input.value);
			askPast();
		});
	}
	byId("sync").addEventListener("change", () => {
		if (past) draw();
	});
	matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
	new ResizeObserver(() => {
		for (const id of ["rates", "depth"]) {
			const i = id === "rates" ? 0 : 1;
			if (plots[i]) plots[i].u.setSize({width: byId(id).clientWidth, height: byId(id).clientHeight});
		}
	}).observe(byId("charts"));
	localTimes(document);
	askLater(asking);
	askPast();
})();
