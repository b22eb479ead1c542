// What can be opened and closed. The rows are in the page already; this adds
// the keys of a treegrid, folding, and the details of a span, which it builds
// from the report's data. All text from outside goes in as text nodes.
"use strict";
(() => {
	const page = document.documentElement.dataset;
	let data;

	const element = (name, className, ...children) => {
		const e = document.createElement(name);
		if (className) e.className = className;
		e.append(...children);
		return e;
	};

	const threeDigits = (v) => Number.isInteger(v) ? String(v) : v < 9.995 ? v.toFixed(2) : v < 99.95 ? v.toFixed(1) : v.toFixed(0);
	const duration = (us) => {
		const abs = Math.abs(us), sign = us < 0 ? "−" : "";
		if (abs < 1000) return `${sign}${abs} µs`;
		return abs < 999500 ? `${sign}${threeDigits(abs / 1e3)} ms` : `${sign}${threeDigits(abs / 1e6)} s`;
	};

	const valueCell = (value) => {
		const cell = element("td", "", String(value));
		if (value === "") {
			cell.className = "empty";
			cell.textContent = "empty";
		}
		return cell;
	};
	const table = (pairs) => element("table", "", element("tbody", "", ...pairs.map(([key, value]) => {
		const head = element("th", "", key);
		head.scope = "row";
		return element("tr", "", head, valueCell(value));
	})));
	const group = (title, content) => element("div", "group", element("h4", "", title), content);

	const eventTable = (span) => {
		const t = element("table", "events", element("tbody", "", ...span.events.map((event) => {
			const head = element("th", "", `+${duration(event.offset_us - span.offset_us)}`);
			head.scope = "row";
			const cell = element("td", "", event.name);
			for (const [key, value] of Object.entries(event.attributes || {})) cell.append(element("small", "", `${key} = ${value}`));
			return element("tr", "", head, cell);
		})));
		return t;
	};

	// A link leads to the trace in this page, else to where the page knows of.
	const linkTo = (traceID) => {
		const section = data.sections.findIndex((s) => s.trace && s.trace.trace_id === traceID);
		const href = section >= 0 ? `#trace-${section + 1}` : page.trace && page.trace.replaceAll("{traceID}", encodeURIComponent(traceID));
		if (!href) return document.createTextNode(`trace ${traceID}`);
		const a = element("a", "", `trace ${traceID}`);
		a.href = href;
		a.rel = "noreferrer";
		return a;
	};
	const linkTable = (links) => element("table", "links", element("tbody", "", ...links.map((l) => {
		const head = element("th", "", linkTo(l.trace_id));
		head.scope = "row";
		return element("tr", "", head, element("td", "", `span ${l.span_id}`));
	})));

	const details = (span, trace) => {
		const head = element("header", "",
			element("h3", "", span.name || "(no name)"),
			element("p", "", `${span.service} · ${duration(span.duration_us)}, from ${duration(span.offset_us)} to ${duration(span.offset_us + span.duration_us)}`));
		const groups = element("div", "groups");
		const attributes = Object.entries(span.attributes || {});
		if (attributes.length) groups.append(group("Attributes", table(attributes)));
		if (span.events) groups.append(group("Events, since the span's start", eventTable(span)));
		if (span.links) groups.append(group("Links", linkTable(span.links)));
		groups.append(group("Span", table([
			["kind", span.kind || "unset"],
			...(span.object ? [["object", span.object]] : []),
			["on the critical path", span.critical_us ? duration(span.critical_us) : "no"],
			["status", span.status || "unset"],
			...(span.status_message ? [["status message", span.status_message]] : []),
			["start", span.start],
			["scope", [span.scope, span.scope_version].filter(Boolean).join(" ") || "unset"],
			["span id", span.span_id],
			["parent id", span.parent_id ? span.parent_id + (span.lost === "missing" ? " (did not arrive)" : "") : "none, it is a root"],
			["trace id", span.trace_id || trace.trace_id],
		])));
		groups.append(group("Resource", table([["service.name", span.service], ...Object.entries(span.resource || {})])));
		const box = element("div", "details", head, groups);
		box.setAttribute("role", "gridcell");
		box.setAttribute("aria-label", "Details");
		return box;
	};

	const matches = (span, words) => {
		const text = [span.service, span.name, span.kind, span.object, span.status, span.status_message, span.span_id,
			...Object.entries(span.attributes || {}).flat()].join("\n").toLowerCase();
		return words.every((word) => text.includes(word));
	};

	// What the reader has done to a trace, by the ids of spans, so that it outlives new data.
	const kept = new Map();

	const show = (grid) => {
		const trace = data.sections[Number(grid.dataset.section)].trace;
		const rows = [...grid.querySelectorAll(".row:not(.head)")];
		const spans = rows.filter((row) => row.dataset.span);
		const level = (row) => Number(row.getAttribute("aria-level"));
		const shown = () => rows.filter((row) => !row.hidden);

		// One row takes part in the order of the Tab key: the one last visited.
		let current = rows[0];
		const visit = (row, focus) => {
			if (!row) return;
			current.tabIndex = -1;
			current = row;
			row.tabIndex = 0;
			if (focus) row.focus();
		};
		for (const row of rows) row.tabIndex = -1;
		visit(current, false);

		// A row shows when every row above it in the tree is expanded.
		const refresh = () => {
			let closed = Infinity;
			for (const row of rows) {
				if (level(row) <= closed) closed = Infinity;
				row.hidden = closed !== Infinity;
				if (!row.hidden && row.getAttribute("aria-expanded") === "false") closed = level(row);
			}
			if (current.hidden) visit(parent(current), grid.contains(document.activeElement));
		};
		const parent = (row) => {
			let i = rows.indexOf(row);
			do i--; while (i >= 0 && (rows[i].hidden || level(rows[i]) >= level(row)));
			return rows[i];
		};
		const foldable = (row) => row.hasAttribute("aria-expanded");
		const expanded = (row) => row.getAttribute("aria-expanded") === "true";
		const fold = (row, open) => {
			if (!foldable(row)) return;
			row.setAttribute("aria-expanded", String(open));
			refresh();
		};

		// A row that stands for others has no span: it opens and closes, and is known by the one below it.
		const spanOf = (row) => trace.spans[Number(row.dataset.span)];
		const keyOf = (row) => row.dataset.span ? spanOf(row).span_id : `above ${spanOf(rows[rows.indexOf(row) + 1]).span_id}`;
		const reveal = (row) => {
			for (let above = parentOf(row); above; above = parentOf(above)) if (foldable(above)) above.setAttribute("aria-expanded", "true");
			refresh();
			visit(row, true);
			row.scrollIntoView({block: "nearest"});
		};
		const parentOf = (row) => {
			let i = rows.indexOf(row);
			do i--; while (i >= 0 && level(rows[i]) >= level(row));
			return rows[i];
		};

		const toggle = (row, open = !row.classList.contains("open")) => {
			if (!row.dataset.span) {
				fold(row, !expanded(row));
				return;
			}
			const box = row.querySelector(".details");
			if (!open) {
				if (box) box.remove();
				row.removeAttribute("aria-details");
			} else if (!box) {
				const made = details(spanOf(row), trace);
				made.id = `${row.id}-details`;
				row.setAttribute("aria-details", made.id);
				row.append(made);
			}
			row.classList.toggle("open", open);
		};

		grid.addEventListener("click", (event) => {
			const row = event.target.closest(".row:not(.head)");
			if (!row || event.target.closest(".details, a")) return;
			visit(row, true);
			if (event.target.closest(".fold")) fold(row, !expanded(row));
			else if (!String(getSelection())) toggle(row);
		});

		grid.addEventListener("keydown", (event) => {
			const row = event.target;
			if (!rows.includes(row) || event.ctrlKey || event.metaKey || event.altKey) return;
			const visible = shown();
			const at = visible.indexOf(row);
			switch (event.key) {
			case "ArrowDown": visit(visible[at + 1], true); break;
			case "ArrowUp": visit(visible[at - 1], true); break;
			case "Home": visit(visible[0], true); break;
			case "End": visit(visible[visible.length - 1], true); break;
			case "ArrowRight":
				if (foldable(row) && !expanded(row)) fold(row, true);
				else if (foldable(row)) visit(visible[at + 1], true);
				break;
			case "ArrowLeft":
				if (foldable(row) && expanded(row)) fold(row, false);
				else visit(parent(row), true);
				break;
			case "Enter": case " ": toggle(row); break;
			case "Escape": if (row.dataset.span) toggle(row, false); break;
			default: return;
			}
			event.preventDefault();
		});

		const tools = grid.parentElement.querySelector(".tools");
		const input = tools.querySelector("input");
		const found = tools.querySelector(".found");
		tools.hidden = false;
		tools.addEventListener("click", (event) => {
			const what = event.target.dataset.do;
			if (what === "critical") {
				const pressed = grid.classList.toggle("only-critical");
				event.target.setAttribute("aria-pressed", String(pressed));
			} else if (what) {
				for (const row of rows) if (foldable(row)) row.setAttribute("aria-expanded", String(what === "expand"));
				refresh();
			}
		});
		const search = () => {
			const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
			grid.classList.toggle("searched", words.length > 0);
			let hits = 0;
			for (const row of spans) {
				const hit = words.length > 0 && matches(spanOf(row), words);
				row.classList.toggle("hit", hit);
				if (hit) hits++;
			}
			found.textContent = words.length ? `${hits} of ${spans.length}` : "";
		};
		input.addEventListener("input", search);
		input.addEventListener("keydown", (event) => {
			if (event.key === "Escape" && input.value) {
				input.value = "";
				search();
			} else if (event.key === "Enter") {
				const hits = rows.filter((row) => row.classList.contains("hit"));
				if (hits.length) reveal(hits[0]);
			} else return;
			event.preventDefault();
		});
		// In the tree, n and p lead to the next hit and to the one before.
		grid.addEventListener("keydown", (event) => {
			if (event.ctrlKey || event.metaKey || event.altKey || !rows.includes(event.target)) return;
			const at = rows.indexOf(event.target), hits = rows.filter((row) => row.classList.contains("hit"));
			if (event.key === "/") input.focus();
			else if (event.key === "n") hits.length && reveal(hits.find((row) => rows.indexOf(row) > at) || hits[0]);
			else if (event.key === "p") hits.length && reveal(hits.findLast((row) => rows.indexOf(row) < at) || hits[hits.length - 1]);
			else return;
			event.preventDefault();
		});

		const before = kept.get(trace.trace_id);
		for (const row of rows) {
			const known = before && before.known.has(keyOf(row));
			if (foldable(row) && (known ? before.folded.has(keyOf(row)) : !row.dataset.span)) row.setAttribute("aria-expanded", "false");
		}
		refresh();
		if (before) {
			for (const row of spans) if (before.open.has(keyOf(row))) toggle(row, true);
			input.value = before.search;
			search();
			if (before.critical) tools.querySelector("[data-do=critical]").click();
			const row = rows.find((row) => keyOf(row) === before.current);
			if (row && !row.hidden) visit(row, before.focused === "row");
			if (before.focused === "search") input.focus();
		}
		return () => kept.set(trace.trace_id, {
			known: new Set(rows.map(keyOf)),
			folded: new Set(rows.filter((row) => foldable(row) && !expanded(row)).map(keyOf)),
			open: new Set(rows.filter((row) => row.classList.contains("open")).map(keyOf)),
			search: input.value, critical: grid.classList.contains("only-critical"), current: keyOf(current),
			focused: document.activeElement === input ? "search" : grid.contains(document.activeElement) ? "row" : "",
		});
	};

	let remember = [];
	const start = () => {
		data = JSON.parse(document.getElementById("data").textContent);
		remember = [...document.querySelectorAll(".waterfall")].map(show);
	};
	start();

	// A live page reads itself anew when its server says so, and says when that is over.
	if (page.live) {
		const say = (text) => {
			const status = document.querySelector(".live");
			status.textContent = text;
			status.hidden = !text;
		};
		const renew = async () => {
			const answer = await fetch(location.href.split("#")[0], {cache: "no-store"});
			if (!answer.ok) return;
			const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
			for (const keep of remember) keep();
			for (const part of ["header.top", "main", "#data"]) document.querySelector(part).replaceWith(fresh.querySelector(part));
			document.title = fresh.title;
			start();
		};
		const events = new EventSource(page.live);
		let turn = Promise.resolve();
		events.addEventListener("changed", (event) => {
			turn = turn.then(renew).then(() => say(event.data)).catch(() => say("the page could not be read anew"));
		});
		let over = "";
		events.addEventListener("over", (event) => {
			over = event.data; // and the connection stays: it tells the server that the page is open
			turn = turn.then(() => say(over));
		});
		events.addEventListener("open", () => say(over));
		events.onerror = () => {
			if (over) events.close();
			else say("tracehook has ended: this is the last that it told");
		};
	}
})();
