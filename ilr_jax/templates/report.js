"use strict";
// The browser of labels. Cards are made only when shown, and every text goes in through textContent, so no text can become markup.
(() => {
  const PAGE = 25;
  const data = JSON.parse(document.getElementById("labels-data").textContent);
  const [form, list, count, more] = ["filters", "labels", "count", "more"].map((id) => document.getElementById(id));
  const lower = data.texts.map((text) => text.toLowerCase());
  const verdict = (correct) => (correct === null ? "unknown" : correct ? "right" : "wrong");
  const rows = data.rows.map(([group, id, prompt, before, proposal, reason, outcome, was, would, accept, reject, score, threshold]) => {
    const [method, seed, round] = data.groups[group];
    const flow = `${verdict(was)} to ${verdict(would)}`;
    const searched = [id, prompt, before, proposal, reason];
    return { method, seed, round, outcome: data.texts[outcome], flow, searched, was, would, accept, reject, score, threshold };
  });

  const element = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };

  const field = (title, input) => {
    const label = element("label", "", title);
    label.append(input);
    form.append(label);
    return input;
  };

  const choice = (title, key) => {
    const values = [...new Set(rows.map((row) => row[key]))];
    if (typeof values[0] === "number") values.sort((a, b) => a - b);
    const select = element("select");
    for (const value of ["", ...values]) {
      const option = element("option", "", value === "" ? "all" : String(value));
      option.value = String(value);
      select.append(option);
    }
    return { key, input: field(title, select) };
  };

  const answer = (title, text, correct, chosen) => {
    const box = element("div", chosen ? "chosen" : "");
    const mark = { right: " ✓ right", wrong: " ✗ wrong", unknown: "" }[verdict(correct)];
    box.append(element("strong", "", title), element("span", verdict(correct), mark), element("p", "text", text || "(nothing)"));
    return box;
  };

  const figures = (row) => {
    const shown = [["accepts the proposal", row.accept], ["rejects the way back", row.reject], ["score", row.score], ["threshold", row.threshold]];
    return shown.filter(([, value]) => value !== null).map(([name, value]) => `${name} ${value.toFixed(3)}`).join(" · ");
  };

  const card = (row) => {
    const [id, prompt, before, proposal, reason] = row.searched.map((number) => data.texts[number]);
    const box = element("article");
    const accepted = row.outcome === "accepted";
    const answers = element("div", "answers");
    const label = accepted ? "Before" : row.outcome === "dropped" ? "Label, dropped" : "Label, kept";
    answers.append(answer(label, before, row.was, label === "Label, kept"));
    answers.append(answer(accepted ? "After (the proposal)" : "Proposal", proposal, row.would, accepted));
    box.append(element("h3", "", `${row.outcome} · ${row.method} · seed ${row.seed} · round ${row.round} · ${id}`));
    box.append(element("p", "text", prompt), answers);
    box.append(element("p", "quiet", [reason, figures(row)].filter(Boolean).join(" · ")));
    return box;
  };

  let found = [];
  let shown = 0;
  const show = () => {
    list.append(...found.slice(shown, shown + PAGE).map(card));
    shown = Math.min(shown + PAGE, found.length);
    count.textContent = `${shown} shown of ${found.length} found, ${rows.length} in all.`;
    more.hidden = shown === found.length;
  };

  const choices = [choice("method", "method"), choice("seed", "seed"), choice("round", "round"), choice("outcome", "outcome")];
  choices.push(choice("label to proposal", "flow"));
  const search = element("input");
  search.type = "search";
  field("text", search);

  const update = () => {
    const query = search.value.trim().toLowerCase();
    const hits = lower.map((text) => text.includes(query));
    const wanted = choices.filter(({ input }) => input.value !== "");
    found = rows.filter((row) => wanted.every(({ key, input }) => String(row[key]) === input.value) && row.searched.some((number) => hits[number]));
    shown = 0;
    list.replaceChildren();
    show();
  };

  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", show);
  update();
})();
