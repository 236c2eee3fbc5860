// A SharedWorker: one event stream for all tabs of a browser, which allows a host six connections in all. It is open
// while at least one tab is visible; hidden tabs hear nothing, and read everything again when they are shown.
// Each visible tab is answered "here": the worker lives in the process of one tab, and crashes with that one.

import { Stream } from "./stream.js";

const visible = new Set();
const stream = new Stream((news) => visible.forEach((tab) => tab.postMessage(news)));

function show(tab) {
  tab.postMessage("here");
  if (stream.isOpen && !visible.has(tab)) tab.postMessage("open");
  visible.add(tab);
  stream.open();
}

function hide(tab) {
  visible.delete(tab);
  if (visible.size === 0) stream.close();
}

addEventListener("connect", ({ ports: [tab] }) => {
  tab.onmessage = ({ data: isVisible }) => (isVisible ? show(tab) : hide(tab));
});
