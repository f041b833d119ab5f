// Charts by uPlot: how busy each server was, and predicted against actual times.
import uPlot from "uplot";
import { html, useEffect, useRef } from "../lib.js";
import { colour, theme } from "../theme.js";
import { tables } from "./feed.js";

const HEIGHT = 200;
const LINES = ["#3b82c4", "#d9822b", "#2f9e63", "#a05bc9", "#c94f4f", "#8a8f2b", "#2ba3a3", "#c45b97"];
const MOST_LINES = 16;

export function UtilisationChart() {
  const slices = Object.entries(tables.slices.value).sort(([one], [other]) => one - other).map(([, slice]) => slice);
  const names = Object.values(tables.servers.value).map((server) => server.name).sort().slice(0, MOST_LINES);
  const data = [slices.map((slice) => slice.at), ...names.map((name) => slices.map((slice) => slice.busy[name] ?? null))];
  const series = names.map((label, index) => ({ label, stroke: LINES[index % LINES.length], width: 2 }));
  return html`
    <${Chart} title="Busy share of each server, last five minutes" name=${names.join()} x="Time" data=${data} series=${series}
      range=${[0, 1]} words=${(value) => `${Math.round(100 * value)} %`} />`;
}

export function PredictionChart() {
  const done = Object.values(tables.requests.value)
    .filter((row) => row.state === "done" && row.predicted != null)
    .sort((one, other) => one.arrived - other.arrived);
  const data = [done.map((_, index) => index + 1), done.map((row) => row.predicted), done.map((row) => row.took)];
  const points = (label, stroke) => ({ label, stroke, width: 0, points: { show: true, size: 6, fill: stroke, stroke } });
  return html`
    <${Chart} title="Predicted and actual times of finished requests, in order of arrival" name="prediction" x="Request" data=${data}
      series=${[points("Predicted", LINES[1]), points("Took", LINES[0])]}
      range=${(_, low, high) => [0, 1.1 * Math.max(1, high ?? 1)]} words=${(value) => `${value.toFixed(1)} s`} />`;
}

// `name` says when the chart is another one, and not only has other data.
function Chart({ title, name, x, data, series, range, words }) {
  const place = useRef(null);
  const chart = useRef(null);
  useEffect(() => {
    const line = { stroke: colour("line"), width: 1 };
    const axis = { stroke: colour("muted"), grid: line, ticks: line };
    const value = (_, each) => (each == null ? "–" : words(each));
    const options = {
      width: place.current.clientWidth,
      height: HEIGHT,
      scales: { x: { time: x === "Time" }, y: { range } },
      axes: [axis, { ...axis, size: 60, values: (_, ticks) => ticks.map(words) }],
      series: [{ label: x }, ...series.map((each) => ({ ...each, value }))],
    };
    chart.current = new uPlot(options, data, place.current);
    const observer = new ResizeObserver(() => chart.current.setSize({ width: place.current.clientWidth, height: HEIGHT }));
    observer.observe(place.current);
    return () => {
      observer.disconnect();
      chart.current.destroy();
    };
  }, [name, theme.value]);
  useEffect(() => chart.current.setData(data));
  return html`
    <figure class="card chart">
      <figcaption>${title}</figcaption>
      <div ref=${place}></div>
    </figure>`;
}
