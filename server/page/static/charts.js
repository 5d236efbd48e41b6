// The charts: uPlot with the same time axis for all of them, the last 30 s.

export const SHOWN_S = 30;
const LEFT = 62, RIGHT = 56, X_AXIS = 24;
const CURSOR = { drag: { x: false, y: false }, sync: { key: "time" }, y: false, points: { show: false } };
const FONT = '12px system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif';

const dark = matchMedia("(prefers-color-scheme: dark)");
let style = getComputedStyle(document.documentElement);

export function colour(name) {
  return style.getPropertyValue(`--${name}`).trim();
}

export function whenColoursChange(redraw) {
  dark.addEventListener("change", () => {
    style = getComputedStyle(document.documentElement);
    redraw();
  });
}

export function makeChart(id, height, { scale, series, leftAxis, rightAxis, hooks }) {
  // A chart of uPlot that fills the width of the element.
  const root = document.getElementById(id);
  root.style.height = `${height}px`;
  const chart = new uPlot(
    {
      width: root.clientWidth, height, series: [{}, ...series], hooks,
      legend: { show: false }, cursor: CURSOR,
      padding: [8, rightAxis ? 0 : RIGHT, 0, 0],
      scales: { x: { time: false, range: () => [-SHOWN_S, 0] }, y: scale },
      axes: [timeAxis(), { ...axis(), ...leftAxis, size: LEFT }, ...(rightAxis ? [{ ...axis(), ...rightAxis, side: 1, size: RIGHT }] : [])],
    },
    [[-SHOWN_S, 0], ...series.map(() => [null, null])],
    root,
  );
  new ResizeObserver(() => chart.setSize({ width: root.clientWidth, height })).observe(root);
  return chart;
}

export function line(name, { fill = false, dash } = {}) {
  // A series that is drawn in one of the colours of the page.
  return {
    stroke: () => colour(name), width: 1.5, dash, points: { show: false }, spanGaps: false,
    fill: fill ? () => `color-mix(in srgb, ${colour(name)} 25%, transparent)` : undefined,
  };
}

export function upTo(least) {
  // A scale from 0 to a round number, so that it seldom changes.
  return {
    range: (chart, min, max) => [0, Math.max(least, roundUp(max ?? 0))],
  };
}

export function shadeTroubles(samples, now) {
  // A hook that marks the times at which the daemon was not ready.
  return (chart) => {
    const { ctx, bbox } = chart;
    ctx.save();
    ctx.globalAlpha = 0.14;
    ctx.fillStyle = colour("bad");
    let from = null;
    const list = samples();
    list.forEach((sample, i) => {
      const isTroubled = !["ready", "draining"].includes(sample.state);
      if (isTroubled && from === null) from = sample.at;
      if (from !== null && (!isTroubled || i === list.length - 1)) {
        const [left, right] = [from, sample.at].map((at) => chart.valToPos(Math.max(-SHOWN_S, at - now()), "x", true));
        ctx.fillRect(left, bbox.top, right - left, bbox.height);
        from = null;
      }
    });
    ctx.restore();
  };
}

function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(1, value)));
  return power * [1, 2, 5, 10].find((step) => value <= step * power);
}

function axis() {
  return {
    stroke: () => colour("faint"), font: FONT,
    grid: { stroke: () => colour("line"), width: 1 }, ticks: { show: false },
  };
}

function timeAxis() {
  return {
    ...axis(), size: X_AXIS, gap: 6,
    splits: () => [-30, -20, -10, 0],
    values: (chart, splits) => splits.map((at) => (at ? `${at} s` : "now")),
  };
}
