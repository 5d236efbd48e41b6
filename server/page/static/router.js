// The page of a router: a row for each instance, from /instances.

import { poll, show } from "./stream.js";

const EVERY_MS = 1000;
const number = new Intl.NumberFormat("en");

poll(["instances"], EVERY_MS, take, tell);

function take({ instances, pending_requests: pending }) {
  const numUp = instances.filter((each) => each.state === "up").length;
  setState(numUp === instances.length ? "ready" : numUp ? "instances missing" : "no instance", numUp === instances.length ? "good" : numUp ? "" : "bad");
  show("instances", `${numUp} of ${instances.length}`);
  show("open", number.format(sum(instances, "open_requests")));
  show("pending", number.format(pending));
  show("decoding", number.format(sum(instances, "num_decoding")));
  document.getElementById("rows").replaceChildren(...instances.map(rowOf));
}

function tell(problem) {
  show("problem", problem);
  document.body.classList.toggle("stale", problem !== "");
  if (problem) setState("not connected", "bad");
}

function setState(text, kind) {
  show("state", text);
  document.getElementById("state").className = `state ${kind}`;
}

function sum(instances, name) {
  return instances.reduce((total, each) => total + (each[name] ?? 0), 0);
}

function rowOf(instance) {
  const row = document.createElement("tr");
  row.title = instance.reason ?? "";
  const isKnown = instance.kv_tokens > 0;
  const used = 1 - instance.free_kv_tokens / instance.kv_tokens;
  for (const text of [
    instance.url, instance.state, instance.phase ?? "–", number.format(instance.open_requests),
    instance.num_waiting ?? "–", instance.num_decoding ?? "–",
    seconds(instance.pending_prefill_s), seconds(instance.tpot_slo ? instance.mean_slack_s : null),
    isKnown ? `${Math.round(100 * used)} %` : "–", seconds(instance.status_age_s),
  ]) {
    row.append(Object.assign(document.createElement("td"), { textContent: text }));
  }
  return row;
}

function seconds(value) {
  return value == null ? "–" : `${value.toFixed(2)} s`;
}
