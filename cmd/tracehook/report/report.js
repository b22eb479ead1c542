// What can be opened and closed. The rows are in the page already; this adds
// the keys of a treegrid, folding, and the details of a span, which it builds
// from the report's data. All text from outside goes in as text nodes.
"use strict";
(() => {
	const data = JSON.parse(document.getElementById("data").textContent);

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

	const details = (span, trace) => {
		const head = element("header", "",
			element("h3", "", span.name || "(no name)"),
			element("p", "", `${span.service} · ${duration(span.duration_us)}, from ${duration(span.offset_us)} to ${duration(span.offset_us + span.duration_us)}`));
		const groups = element("div", "groups");
		const attributes = Object.entries(span.attributes || {});
		if (attributes.length) groups.append(group("Attributes", table(attributes)));
		if (span.events) groups.append(group("Events, since the span's start", eventTable(span)));
		if (span.links) groups.append(group("Links", table(span.links.map((l) => [`trace ${l.trace_id}`, `span ${l.span_id}`]))));
		groups.append(group("Span", table([
			["kind", span.kind || "unset"],
			["status", span.status || "unset"],
			...(span.status_message ? [["status message", span.status_message]] : []),
			["start", span.start],
			["scope", [span.scope, span.scope_version].filter(Boolean).join(" ") || "unset"],
			["span id", span.span_id],
			["parent id", span.parent_id ? span.parent_id + (span.lost === "missing" ? " (did not arrive)" : "") : "none, it is a root"],
			["trace id", trace.trace_id],
		])));
		groups.append(group("Resource", table([["service.name", span.service], ...Object.entries(span.resource || {})])));
		const box = element("div", "details", head, groups);
		box.setAttribute("role", "gridcell");
		box.setAttribute("aria-label", "Details");
		return box;
	};

	for (const grid of document.querySelectorAll(".waterfall")) {
		const trace = data.sections[Number(grid.dataset.section)].trace;
		const rows = [...grid.querySelectorAll(".row[data-span]")];
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

		const toggle = (row, open = !row.classList.contains("open")) => {
			const box = row.querySelector(".details");
			if (!open) {
				if (box) box.remove();
				row.removeAttribute("aria-details");
			} else if (!box) {
				const made = details(trace.spans[Number(row.dataset.span)], trace);
				made.id = `${row.id}-details`;
				row.setAttribute("aria-details", made.id);
				row.append(made);
			}
			row.classList.toggle("open", open);
		};

		grid.addEventListener("click", (event) => {
			const row = event.target.closest(".row[data-span]");
			if (!row || event.target.closest(".details")) return;
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
			case "Escape": toggle(row, false); break;
			default: return;
			}
			event.preventDefault();
		});

		const tools = grid.parentElement.querySelector(".tools");
		tools.hidden = false;
		tools.addEventListener("click", (event) => {
			const what = event.target.dataset.do;
			if (!what) return;
			for (const row of rows) if (foldable(row)) row.setAttribute("aria-expanded", String(what === "expand"));
			refresh();
		});
	}
})();
