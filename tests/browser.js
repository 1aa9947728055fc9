// Runs the report's script on a stand-in for the DOM, operates the browser of labels, and prints what it showed after each step.
"use strict";
const fs = require("fs");
const [script, data] = process.argv.slice(2).map((path) => fs.readFileSync(path, "utf8"));

class Node {
  constructor(tag) {
    Object.assign(this, { tag, children: [], value: "", listeners: {}, own: "", hidden: false });
  }
  get textContent() {
    return this.own + this.children.map((child) => child.textContent).join("");
  }
  set textContent(text) {
    this.own = String(text);
    this.children = [];
  }
  append(...nodes) {
    this.children.push(...nodes);
  }
  replaceChildren(...nodes) {
    this.children = nodes;
  }
  addEventListener(event, listener) {
    this.listeners[event] = listener;
  }
}

const byId = Object.fromEntries(["labels-data", "filters", "labels", "count", "more"].map((id) => [id, new Node("div")]));
byId["labels-data"].textContent = data;
globalThis.document = { getElementById: (id) => byId[id], createElement: (tag) => new Node(tag) };
(0, eval)(script);

const inputs = Object.fromEntries(byId.filters.children.map((label) => [label.own, label.children[0]]));
const seen = () => [byId.count.textContent, byId.labels.children.length, byId.more.hidden];
const set = (name, value) => {
  inputs[name].value = value;
  byId.filters.listeners.input();
  return seen();
};
const steps = { start: seen() };
byId.more.listeners.click();
byId.more.listeners.click();
steps.more = seen();
steps.accepted = set("outcome", "accepted");
steps["accepted, wrong to right"] = set("label to proposal", "wrong to right");
set("label to proposal", "");
steps.text = set("text", "SWER 42!");
steps.card = byId.labels.textContent;
console.log(JSON.stringify(steps));
