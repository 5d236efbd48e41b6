// The timeline: a track for each stage, with its steps in the colours of their phases.
//
// Each pixel is the mixture of what the stage did in its time: steps of each phase, bubbles (it had
// no step while another stage had one), and nothing. So a thousand steps are as legible as ten.

import { SHOWN_S, colour, makeChart } from "./charts.js";

const PHASES = { p: "prefill", d: "decode", m: "mixed" };
const LETTERS = Object.keys(PHASES);
const TRACK = 30, GAP = 6, FRAME = 8 + 24;

export class Timeline {
  constructor(numStages, showStep, hook) {
    this.now = 0;
    this.steps = Array.from({ length: numStages }, () => []);
    this.stages = [];
    this.showStep = showStep;
    const middles = () => this.steps.map((_, stage) => numStages - stage - 0.5);
    this.chart = makeChart("timeline", numStages * (numStages > 12 ? TRACK / 2 : TRACK) + FRAME, {
      scale: { range: () => [0, numStages] },
      series: [{ show: false }],
      leftAxis: { splits: middles, values: () => this.steps.map((_, stage) => `stage ${stage}`), grid: { show: false } },
      rightAxis: { splits: middles, values: () => this.steps.map((_, stage) => this.bubbleOf(stage)), grid: { show: false } },
      hooks: { draw: [(chart) => this.draw(chart), hook] },
    });
    this.chart.over.addEventListener("mousemove", (event) => this.point(event.offsetX, event.offsetY));
    this.chart.over.addEventListener("mouseleave", () => showStep(null));
  }

  add(columns) {
    columns.stages.forEach((stage, i) => {
      this.steps[stage]?.push({
        id: columns.step_ids[i], phase: columns.phases[i], rows: columns.num_rows[i],
        tokens: columns.num_tokens[i], began: columns.began_at[i], ended: columns.ended_at[i],
      });
    });
  }

  update(now, stages, isBusy) {
    this.now = now;
    this.isBusy = isBusy;
    this.stages = stages;
    this.steps = this.steps.map((steps) => {
      const kept = steps.findIndex((step) => step.ended > now - SHOWN_S);
      return kept > 0 ? steps.slice(kept) : kept < 0 ? [] : steps;
    });
    this.chart.redraw(false, true);
  }

  bubbleOf(stage) {
    const share = this.stages.find((each) => each.stage === stage)?.bubble;
    return share == null ? "–" : `${Math.round(100 * share)} %`;
  }

  draw({ ctx, bbox }) {
    const width = Math.max(1, Math.round(bbox.width)), numStages = this.steps.length;
    const shares = this.steps.map((steps) => this.sharesOf(steps, width));
    const picture = new OffscreenCanvas(width, numStages), inner = picture.getContext("2d");
    const image = inner.createImageData(width, numStages);
    const known = this.steps.map((_, stage) => this.reportedColumn(stage, width));
    const colours = Object.fromEntries([...Object.values(PHASES), "bubble", "idle"].map((name) => [name, rgb(inner, name)]));
    for (let x = 0; x < width; x++) {
      const work = Math.max(...shares.map((each) => LETTERS.reduce((sum, letter) => sum + each[letter][x], 0)));
      for (let stage = 0; stage < numStages; stage++) {
        if (x < known[stage]) mix(image, stage * width + x, shares[stage], x, work, colours);
      }
    }
    inner.putImageData(image, 0, 0);
    ctx.save();
    ctx.imageSmoothingEnabled = false;
    const track = bbox.height / numStages, gap = Math.min(GAP * devicePixelRatio, track / 4);
    for (let stage = 0; stage < numStages; stage++) {
      ctx.drawImage(picture, 0, stage, width, 1, bbox.left, bbox.top + stage * track + gap / 2, width, track - gap);
    }
    ctx.restore();
  }

  sharesOf(steps, width) {
    // The part of each column of pixels that steps of each phase take.
    const shares = Object.fromEntries(LETTERS.map((letter) => [letter, new Float32Array(width)]));
    const columnsPerS = width / SHOWN_S, begin = this.now - SHOWN_S;
    for (const step of steps) {
      const from = Math.max(0, (step.began - begin) * columnsPerS);
      const to = Math.min(width, (step.ended - begin) * columnsPerS);
      const share = shares[step.phase];
      for (let x = Math.floor(from); x < to; x++) share[x] += Math.min(to, x + 1) - Math.max(from, x);
    }
    return shares;
  }

  reportedColumn(stage, width) {
    // Up to this column, the steps of the stage are known. A step is reported when it has ended.
    const reportedAt = this.stages.find((each) => each.stage === stage)?.reported_at ?? this.now;
    const lastEnd = Math.max(-Infinity, ...this.steps.map((steps) => steps.at(-1)?.ended ?? -Infinity));
    const until = this.isBusy ? Math.min(reportedAt, Math.max(lastEnd, this.now - SHOWN_S)) : reportedAt;
    return Math.round(((until - this.now + SHOWN_S) / SHOWN_S) * width);
  }

  point(left, top) {
    const at = this.now + this.chart.posToVal(left, "x");
    const stage = Math.floor((top / this.chart.over.clientHeight) * this.steps.length);
    const step = this.steps[stage]?.find((each) => each.began <= at && at < each.ended);
    this.showStep(step && { stage, ...step, phase: PHASES[step.phase] });
  }
}

function rgb(context, name) {
  context.fillStyle = colour(name);
  const value = parseInt(context.fillStyle.slice(1), 16);
  return [value >> 16, (value >> 8) & 255, value & 255];
}

function mix(image, pixel, shares, x, work, colours) {
  const parts = LETTERS.map((letter) => [colours[PHASES[letter]], Math.min(1, shares[letter][x])]);
  const busy = Math.min(1, parts.reduce((sum, [, share]) => sum + share, 0));
  const bubble = Math.max(0, Math.min(1, work) - busy);
  parts.push([colours.bubble, bubble], [colours.idle, Math.max(0, 1 - busy - bubble)]);
  for (let channel = 0; channel < 3; channel++) {
    image.data[4 * pixel + channel] = parts.reduce((sum, [value, share]) => sum + share * value[channel], 0);
  }
  image.data[4 * pixel + 3] = 255;
}
