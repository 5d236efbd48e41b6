// The page of a daemon: the tiles, the timeline and the charts, from the statuses of the stream.

import { SHOWN_S, line, makeChart, shadeTroubles, upTo, whenColoursChange } from "./charts.js";
import { follow, hasKey, show } from "./stream.js";
import { Timeline } from "./timeline.js";

const CHART_HEIGHT = 112;
const number = new Intl.NumberFormat("en");
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const POINT_AT_A_STEP = document.getElementById("step").textContent;
let samples = [], now = 0, timeline = null;

const shade = shadeTroubles(() => samples, () => now);
const hooks = { drawAxes: [shade] };
const charts = [
  [makeChart("tokens", CHART_HEIGHT, { scale: upTo(10), series: [line("decode", { fill: true }), line("prefill")], hooks }),
    (sample) => sample.generated_per_s ?? 0, (sample) => sample.prompt_per_s ?? 0],
  [makeChart("sequences", CHART_HEIGHT, { scale: upTo(4), series: [line("live"), line("waiting", { dash: [5, 3] })], hooks }),
    (sample) => sample.live ?? 0, (sample) => sample.waiting ?? 0],
  [makeChart("kv-chart", CHART_HEIGHT, { scale: upTo(10), series: [line("kv", { fill: true })], hooks }),
    (sample) => 100 * (sample.kv_usage ?? 0)],
];

follow("pipeline/status", take, tell);
whenColoursChange(draw);

function take(status) {
  now = status.at;
  samples = [...samples, ...status.samples].filter((sample) => sample.at > now - SHOWN_S - 1);
  timeline ??= new Timeline(status.num_stages, showStep, shade);
  timeline.add(status.steps);
  timeline.update(now, status.stages, (samples.at(-1)?.live ?? 0) > 0);
  // A link cannot send the key.
  document.getElementById("links").hidden = hasKey();
  showHead(status);
  showTiles(status, samples.at(-1) ?? {});
  draw();
}

function tell(problem) {
  show("problem", problem);
  document.body.classList.toggle("stale", problem !== "");
  if (problem) setState("not connected", "bad");
}

function draw() {
  const times = samples.map((sample) => sample.at - now);
  for (const [chart, ...values] of charts) {
    chart.setData([times, ...values.map((value) => samples.map(value))]);
  }
}

function showHead(status) {
  const sample = samples.at(-1) ?? {};
  const isIdle = status.state === "ready" && !(sample.live || sample.waiting || sample.queued);
  setState(isIdle ? "idle" : status.state, status.state === "ready" ? "good" : status.state === "engine lost" ? "bad" : "");
  const phase = !isIdle && ["ready", "draining"].includes(status.state) ? sample.phase ?? "prefill" : "";
  show("phase", phase);
  document.getElementById("phase").className = `phase ${phase}`;
  show("model", status.models[0] ?? "tdpipe");
  document.title = `${status.models[0]} – ${status.state} – tdpipe`;
  const stages = status.num_stages === 1 ? "1 stage" : `${status.num_stages} stages`;
  show("about", `${stages} · ${status.policy} · tdpipe ${status.version}`);
  show("problem", status.state === "ready" ? "" : status.reason);
}

function setState(text, kind) {
  show("state", text);
  document.getElementById("state").className = `state ${kind}`;
}

function showTiles(status, sample) {
  show("generated", number.format(Math.round(sample.generated_per_s ?? 0)));
  show("prompts", number.format(Math.round(sample.prompt_per_s ?? 0)));
  showTimes("first-token", status.first_token_s);
  showTimes("per-token", status.per_token_s);
  show("open", number.format(sample.open_requests ?? 0));
  show("queued", number.format(sample.queued ?? 0));
  show("kv", `${Math.round(100 * (sample.kv_usage ?? 0))} %`);
  show("kv-tokens", status.kv_tokens ? `of ${compact.format(status.kv_tokens)} tokens` : "");
  const shares = status.stages.map((stage) => stage.bubble).filter((share) => share != null);
  const mean = shares.reduce((sum, share) => sum + share, 0) / shares.length;
  show("bubbles", shares.length ? `${Math.round(100 * mean)} %` : "–");
  show("counters", `Since the engine's start: ${status.switches} phase switches, ${status.preemptions} preemptions, ${status.restarts} restarts.`);
  if (!status.exact_times) {
    show("note", "The last 30 s. Step times are those of launching GPU kernels; --exact-times makes them exact, and shows the bubbles.");
  }
}

function showTimes(id, quantiles) {
  show(id, quantiles ? duration(quantiles.p50) : "–");
  show(`${id}-p95`, quantiles ? `p95 ${duration(quantiles.p95)}` : "");
}

function duration(seconds) {
  if (seconds >= 9.995) return `${seconds.toFixed(1)} s`;
  if (seconds >= 0.9995) return `${seconds.toFixed(2)} s`;
  return `${(1000 * seconds).toFixed(seconds < 0.00995 ? 1 : 0)} ms`;
}

function showStep(step) {
  const text = step
    ? `stage ${step.stage}, step ${step.id}: ${step.phase}, ${step.rows} rows, ${step.tokens} tokens, ${duration(step.ended - step.began)}`
    : POINT_AT_A_STEP;
  show("step", text);
}
