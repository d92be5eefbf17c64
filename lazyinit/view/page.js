// Opens the pages that view/page.py writes. Nothing is made of a place before it is opened.
for (const root of document.querySelectorAll('[data-lazyinit="{{name}}"]:not([data-ready])')) {
  root.dataset.ready = "";
  const data = JSON.parse(root.querySelector('script[type="application/json"]').textContent);
  const { records, strings } = data;
  const nodes = data.nodes.map((node) => (typeof node === "number" ? [node, []] : node));
  const PAGE = 200;
  const RESERVED = /[\ue000-\ue0ff]/g;

  // What is known ---------------------------------------------------------------------------

  const text = (number, path) => {
    const found = [...new Set(path.match(/[0-9]+/g))];
    return strings[number].replace(RESERVED, (c) => found[c.charCodeAt(0) - 0xe000] ?? c);
  };
  const join = (path, key) => (path === null ? key : path + "/" + key);
  const literal = (key) => key.replace(/[\[*?]/g, "[$&]");
  const members = (row) => {
    const found = [];
    for (let at = 0; at < row[1].length; at += 2) found.push([row[1][at], row[1][at + 1]]);
    return found;
  };

  const totals = new Map();
  const total = (number) => {
    if (totals.has(number)) return totals.get(number);
    const [record, rows] = nodes[number];
    const sum = { leaves: 0, bytes: 0, words: new Map() };
    const add = (word, state, leaves, bytes) => {
      const old = sum.words.get(word) || { state, leaves: 0, bytes: 0 };
      sum.words.set(word, { state, leaves: old.leaves + leaves, bytes: old.bytes + bytes });
      sum.leaves += leaves;
      sum.bytes += bytes;
    };
    if (record >= 0) add(records[record][0], records[record][1], 1, records[record][3]);
    for (const row of rows)
      for (const [, below] of members(row))
        for (const [word, part] of total(below).words) add(word, part.state, part.leaves, part.bytes);
    totals.set(number, sum);
    return sum;
  };
  const together = (place) => {
    const sum = { leaves: 0, bytes: 0, words: new Map() };
    for (const { node } of place.members) {
      const one = total(node);
      sum.leaves += one.leaves;
      sum.bytes += one.bytes;
      for (const [word, part] of one.words) {
        const old = sum.words.get(word) || { state: part.state, leaves: 0, bytes: 0 };
        const leaves = old.leaves + part.leaves;
        sum.words.set(word, { state: part.state, leaves, bytes: old.bytes + part.bytes });
      }
    }
    return sum;
  };

  const bytes = (count) => {
    let unit = 0;
    while (count >= (unit ? 1023.95 : 1024) && unit < 5) [count, unit] = [count / 1024, unit + 1];
    return (unit ? count.toFixed(1) : count) + " " + ["B", "KiB", "MiB", "GiB", "TiB", "PiB"][unit];
  };
  const counted = (count, word) =>
    count.toLocaleString("en-US") + " " + (count === 1 ? word : word === "leaf" ? "leaves" : word + "s");

  // A place is what one line stands for: one node, or several that are alike. `glob` selects
  // exactly these, or is null if no glob does.
  const children = (place) =>
    nodes[place.members[0].node][1].map((row, at) => {
      const keys = members(row).map(([key]) => key);
      const all = place.members.flatMap(({ path, node }) =>
        members(nodes[node][1][at]).map(([key, child]) => ({ path: join(path, key), node: child })));
      let glob = literal(keys[0]);
      if (row[0]) {
        const stem = row[0].slice(0, row[0].lastIndexOf("{"));
        const among = new Set(keys);
        const others = nodes[place.members[0].node][1].flatMap((r) => members(r).map(([key]) => key));
        const exact = others.every((key) => among.has(key) || !key.startsWith(stem));
        glob = exact ? literal(stem) + "*" : null;
      }
      const above = place.glob === "" ? null : place.glob;
      return {
        name: row[0] || keys[0],
        alike: row[0] ? keys.length : 0,
        glob: glob === null || (above === null && place.glob === null) ? null : join(above, glob),
        members: all,
      };
    });
  // A place with nothing in it but one other is shown with that in one line.
  const below = (place) =>
    children(place).map((one) => {
      for (;;) {
        const [record, rows] = nodes[one.members[0].node];
        if (record >= 0 || rows.length !== 1) return one;
        const [only] = children(one);
        if (one.alike && only.alike) return one;
        one = { ...only, name: one.name + "/" + only.name, alike: one.alike || only.alike };
      }
    });

  // One text for several leaves: numbers that differ are {n}, and what else differs is listed.
  const merged = (texts) => {
    const all = [...new Set(texts)];
    if (all.length === 1) return all[0];
    const cut = all.map((one) => one.split(/([0-9]+)/));
    const same = cut.every((one) => one.length === cut[0].length &&
      one.every((part, at) => at % 2 || part === cut[0][at]));
    const shown = same
      ? cut[0].map((part, at) => (cut.every((one) => one[at] === part) ? part : "{n}")).join("")
      : all[0] + ", \u2026, " + all[all.length - 1];
    return shown + " (" + all.length.toLocaleString("en-US") + " that differ)";
  };

  // What is shown ---------------------------------------------------------------------------

  const make = (tag, name, content, parts = []) => {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (content) made.textContent = content;
    made.append(...parts);
    return made;
  };
  const badge = (word, state, more = "") =>
    make("span", "li-word li-" + state, word + (more ? " " + more : ""));

  // The part of all bytes that a place has, by state; words beside it say the same.
  const bar = (sum) => {
    const drawn = make("span", "li-parts");
    drawn.setAttribute("aria-hidden", "true");
    const all = total(data.root).bytes || 1;
    for (const { state, bytes: size } of sum.words.values()) {
      const part = make("span", "li-" + strings[state]);
      part.style.width = (100 * size) / all + "%";
      drawn.append(part);
    }
    return drawn;
  };

  const status = make("span", "li-status");
  status.setAttribute("role", "status");
  const copied = async (path, said) => {
    try {
      await navigator.clipboard.writeText(path);
    } catch {
      // Pages without https have no clipboard, but may copy what is selected.
      const box = make("textarea");
      box.value = path;
      root.append(box);
      box.select();
      document.execCommand("copy");
      box.remove();
    }
    status.textContent = "copied " + said;
  };
  // Where no glob selects just these, a list of paths does; it is Python as well as JSON.
  const pathLine = (place) => {
    if (place.glob === "") return make("div", "li-path", "the tree itself");
    const globs = place.members.map(({ path }) => path.split("/").map(literal).join("/"));
    const path = place.glob ?? JSON.stringify(globs);
    const said = place.glob ?? "a list of " + counted(globs.length, "path");
    const button = make("button", "li-copy", "copy");
    button.type = "button";
    button.setAttribute("aria-label", "copy " + (place.glob ? "the path " + path : said));
    button.addEventListener("click", () => copied(path, said));
    return make("div", "li-path", "", [make("code", "", said), " ", button]);
  };

  const summary = (place, isLeaf) => {
    const first = records[nodes[place.members[0].node][0]];
    const sum = together(place);
    const many = place.members.length;
    const line = [make("span", "li-name", place.name === "" ? "(the tree)" : place.name)];
    if (place.alike) line.push(make("span", "li-alike", place.alike.toLocaleString("en-US") + " alike"));
    if (isLeaf) {
      line.push(badge(strings[first[0]], strings[first[1]]));
      line.push(make("span", "li-dtype", strings[first[2]]));
      const from = merged(place.members.map(({ path, node }) => text(records[nodes[node][0]][4], path)));
      if (from) line.push(make("span", "li-from", from));
    } else {
      line.push(make("span", "li-count", counted(sum.leaves, "leaf")));
      for (const [word, part] of sum.words)
        line.push(badge(strings[word], strings[part.state],
          sum.words.size > 1 ? part.leaves + ", " + bytes(part.bytes) : ""));
      line.push(bar(sum));
    }
    const each = many > 1 && isLeaf ? bytes(first[3]) + " each, " : "";
    line.push(make("span", "li-bytes", each + bytes(sum.bytes)));
    // Spaces, so that words stay apart where they are read aloud.
    return make("summary", "", "", line.flatMap((part) => [part, " "]));
  };

  const drawn = (number) => {
    const box = make("div", "li-picture");
    // treescope's own scripts have to run: those of a plain clone would not.
    const source = root.querySelector('template[data-picture="' + number + '"]').innerHTML;
    box.append(document.createRange().createContextualFragment(source));
    return box;
  };

  const facts = (place) => {
    const list = make("dl", "li-facts");
    const all = place.members.map(({ path, node }) => ({ path, record: records[nodes[node][0]] }));
    const more = all[0].record[6];
    for (let at = 0; at < more.length; at += 2) {
      const value = merged(all.map(({ path, record }) => text(record[6][at + 1], path)));
      list.append(make("dt", "", strings[more[at]]), make("dd", "", value));
    }
    const pictures = [...new Set(all.flatMap(({ record }) => record[5]))];
    return [list, ...pictures.slice(0, 4).map(drawn)];
  };

  const paged = (box, places, show) => {
    const next = places.slice(0, PAGE);
    box.append(...next.map(show));
    const rest = places.slice(PAGE);
    if (!rest.length) return;
    const button = make("button", "li-more", "show " + Math.min(PAGE, rest.length) + " more of " +
      rest.length.toLocaleString("en-US"));
    button.type = "button";
    button.addEventListener("click", () => {
      button.remove();
      paged(box, rest, show);
    });
    box.append(button);
  };

  const each = (place) =>
    place.members.map(({ path, node }) => ({
      name: path, alike: 0, glob: path.split("/").map(literal).join("/"), members: [{ path, node }],
    }));

  const shown = (place) => {
    const [record, rows] = nodes[place.members[0].node];
    const details = make("details", "li-place", "", [summary(place, record >= 0 && !rows.length)]);
    details.addEventListener("toggle", () => {
      if (!details.open || details.children.length > 1) return;
      const body = make("div", "li-body", "", [pathLine(place)]);
      if (record >= 0) body.append(...facts(place));
      paged(body, below(place), shown);
      if (place.alike) {
        const one = make("details", "li-each", "", [
          make("summary", "", "each of the " + place.members.length.toLocaleString("en-US"))]);
        one.addEventListener("toggle", () => {
          if (one.open && one.children.length === 1) paged(one, each(place), shown);
        });
        body.append(one);
      }
      details.append(body);
    });
    return details;
  };

  // Search ----------------------------------------------------------------------------------

  let leaves = null;
  const everyLeaf = () => {
    if (leaves) return leaves;
    leaves = [];
    const walk = (path, number) => {
      const [record, rows] = nodes[number];
      if (record >= 0) {
        const [word, , array, , origin] = records[record];
        const told = [path ?? "", strings[word], strings[array], text(origin, path ?? "")];
        leaves.push({ path: path ?? "", node: number, told: told.join(" ").toLowerCase() });
      }
      for (const row of rows) for (const [key, child] of members(row)) walk(join(path, key), child);
    };
    walk(null, data.root);
    return leaves;
  };
  const globbed = (pattern) => {
    const plain = (part) => part.replace(/[.+^${}()|\[\]\\]/g, "\\$&");
    const parts = pattern.split(/(\*\*\/?|\*|\?)/).map((part, at) =>
      at % 2 === 0 ? plain(part) : part[1] === "*" ? ".*" : part === "*" ? "[^/]*" : "[^/]");
    return new RegExp("^" + parts.join("") + "(/|$)", "i");
  };
  const found = make("div", "li-found");
  const tree = make("div", "li-tree");
  const search = (query) => {
    query = query.trim();
    tree.hidden = query !== "";
    found.replaceChildren();
    if (!query) {
      status.textContent = "";
      return;
    }
    const glob = /[*?]/.test(query) ? globbed(query) : null;
    const terms = query.toLowerCase().split(/\s+/);
    const hits = everyLeaf().filter(({ path, told }) =>
      glob ? glob.test(path) : terms.every((term) => told.includes(term)));
    const all = counted(everyLeaf().length, "leaf");
    status.textContent = hits.length.toLocaleString("en-US") + " of " + all;
    paged(found, each({ members: hits }), shown);
  };
  const box = make("input", "li-search");
  Object.assign(box, { type: "search", placeholder: "search: q kernel, or params/**/kernel" });
  box.setAttribute("aria-label", "search paths, states, dtypes and what makes a leaf");
  let waiting = 0;
  box.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => search(box.value), 120);
  });

  // Arrows go from line to line, open and close. Notebooks would take keys as commands.
  root.addEventListener("keydown", (event) => {
    event.stopPropagation();
    const line = event.target;
    if (line.tagName !== "SUMMARY") return;
    const lines = [...root.querySelectorAll("summary")].filter((one) => one.getClientRects().length);
    const at = lines.indexOf(line);
    const details = line.parentElement;
    const above = details.parentElement.closest("details");
    const go = {
      ArrowDown: () => lines[at + 1]?.focus(),
      ArrowUp: () => lines[at - 1]?.focus(),
      Home: () => lines[0].focus(),
      End: () => lines[lines.length - 1].focus(),
      ArrowRight: () => (details.open ? lines[at + 1]?.focus() : (details.open = true)),
      ArrowLeft: () => (details.open ? (details.open = false) : above?.querySelector("summary").focus()),
    }[event.key];
    if (go) {
      event.preventDefault();
      go();
    }
  });

  // Start -----------------------------------------------------------------------------------

  const top = { name: "", alike: 0, glob: "", members: [{ path: null, node: data.root }] };
  const legend = make("div", "li-legend");
  for (const [word, part] of total(data.root).words)
    legend.append(badge(strings[word], strings[part.state],
      counted(part.leaves, "leaf") + ", " + bytes(part.bytes)));
  if (nodes[data.root][0] >= 0) tree.append(shown({ ...top, members: [{ path: "", node: data.root }] }));
  paged(tree, below(top), shown);
  root.querySelector(".li-plain").replaceWith(
    legend, make("div", "li-tools", "", [box, status]), tree, found);
  // A place that is alone hides the tree behind it.
  const only = tree.querySelector(":scope > details:only-child");
  if (only && !only.querySelector(".li-dtype")) only.open = true;
}
