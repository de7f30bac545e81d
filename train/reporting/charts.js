// Draw the charts as SVG from the numbers in the element "data". A run is a colour, and a dash pattern from the
// eighth run on. A series is a metric of a run: its x values depend on the chosen axis.
const data = JSON.parse(document.getElementById("data").textContent);
const STORE = `folio report ${location.pathname}`;
const DASHES = ["", "8 3", "2 3", "8 3 2 3"];
const MARGIN = { left: 62, right: 22, top: 8, bottom: 30 };
const LABELS = {
  train_loss: "training loss", val_loss: "validation loss", bits_per_byte: "bits per byte", learning_rate: "learning rate",
  grad_norm: "gradient norm", tokens_per_s: "tokens/s", mfu: "MFU", peak_memory_bytes: "peak memory",
};
const AXES = { step: "steps", tokens: "tokens", seconds: "seconds of training" };
const OF_EVALUATIONS = ["val_loss", "bits_per_byte"];
const NOISY = ["train_loss", "grad_norm", "tokens_per_s", "mfu"]; // these are smoothed
const controls = Object.fromEntries(["axis", "log-x", "log-y", "smoothing", "position"].map((id) => [id, document.getElementById(id)]));
const runBoxes = [...document.querySelectorAll("[data-run]")];
const dashOf = (run) => DASHES[Math.floor(run / 7) % DASHES.length];

function element(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function formatNumber(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  for (const [limit, unit] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e4, "k"]])
    if (size >= limit) return `${Number((value / limit * (unit === "k" ? 10 : 1)).toPrecision(4))}${unit}`;
  return size < 1e-3 ? value.toExponential(2).replace(/\.?0+e/, "e") : String(Number(value.toPrecision(5)));
}

// The points of a metric of a run on the chosen axis: [x, y] for each that has a value.
function listPoints(run, metric) {
  const columns = OF_EVALUATIONS.includes(metric) ? run.evaluations : run.training;
  const axis = controls.axis.value;
  const points = [];
  (columns[metric] ?? []).forEach((y, i) => {
    const x = axis === "seconds" ? columns.seconds[i] : columns.step[i] * (axis === "tokens" ? run.tokens_per_step : 1);
    if (y !== null && !(controls["log-x"].checked && x <= 0)) points.push([x, y]);
  });
  return points;
}

// An exponential moving average, divided by the sum of its weights.
function smooth(points, share) {
  let sum = 0, weight = 0;
  return points.map(([x, y]) => {
    sum = share * sum + (1 - share) * y;
    weight = share * weight + (1 - share);
    return [x, sum / weight];
  });
}

function listSeries(chart) {
  const share = Number(controls.smoothing.value);
  const all = [];
  for (const metric of chart.metrics)
    data.runs.forEach((run, number) => {
      if (!runBoxes[number].checked) return;
      let points = listPoints(run, metric);
      if (chart.is_loss && controls["log-y"].checked) points = points.filter(([, y]) => y > 0);
      const isSmoothed = share > 0 && NOISY.includes(metric);
      if (points.length) all.push({ metric, run, number, points, shown: isSmoothed ? smooth(points, share) : points, isSmoothed });
    });
  return all;
}

// A linear or logarithmic scale from the numbers [low, high] to the pixels [from, to], with its ticks.
function makeScale(low, high, from, to, isLog, numTicks) {
  const convert = isLog ? Math.log10 : (value) => value;
  if (low === high) [low, high] = isLog ? [low / 2, high * 2] : [low - (Math.abs(low) || 1) / 2, high + (Math.abs(high) || 1) / 2];
  const first = convert(low), range = convert(high) - first;
  const scale = (value) => from + ((convert(value) - first) / range) * (to - from);
  scale.invert = (pixel) => {
    const at = first + ((pixel - from) / (to - from)) * range;
    return isLog ? 10 ** at : at;
  };
  scale.ticks = isLog ? listLogTicks(low, high, numTicks) : listTicks(low, high, numTicks);
  return scale;
}

function listTicks(low, high, numTicks) {
  const rough = (high - low) / numTicks, power = 10 ** Math.floor(Math.log10(rough));
  const size = [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= rough);
  const ticks = [];
  for (let i = Math.ceil(low / size - 1e-9); i * size <= high + size * 1e-9; i++) ticks.push(Number((i * size).toPrecision(12)));
  return ticks;
}

function listLogTicks(low, high, numTicks) {
  const list = (factors) => {
    const ticks = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
      for (const factor of factors) ticks.push(Number((factor * 10 ** power).toPrecision(6)));
    return ticks.filter((tick) => tick >= low && tick <= high);
  };
  let ticks = [[1], [1, 3], [1, 2, 5]].map(list).filter((found) => found.length <= numTicks * 1.5).pop() ?? list([1]);
  if (ticks.length < 3 && high < low * 10) ticks = listTicks(low, high, numTicks);
  return ticks.filter((_, i) => i % Math.ceil(ticks.length / (numTicks * 1.5)) === 0);
}

function getRange(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) { if (value < low) low = value; if (value > high) high = value; }
  return [low, high];
}

// The smallest and the largest x of all charts, so that they share an axis.
function getAxisRange() {
  const values = [];
  for (const chart of data.charts) for (const series of listSeries(chart)) for (const [x] of series.points) values.push(x);
  return getRange(values);
}

function path(points, x, y) {
  return points.map(([a, b], i) => `${i ? "L" : "M"}${x(a).toFixed(1)} ${y(b).toFixed(1)}`).join("");
}

function drawGrid(svg, chart, x, y, width, height) {
  for (const tick of y.ticks) {
    svg.append(element("path", { class: "grid", d: `M${MARGIN.left} ${y(tick).toFixed(1)}H${width - MARGIN.right}` }));
    svg.append(element("text", { x: MARGIN.left - 6, y: y(tick) + 4, "text-anchor": "end" }, formatNumber(tick)));
  }
  for (const tick of x.ticks) {
    svg.append(element("path", { class: "grid", d: `M${x(tick).toFixed(1)} ${MARGIN.top}V${height - MARGIN.bottom}` }));
    svg.append(element("text", { x: x(tick), y: height - MARGIN.bottom + 14, "text-anchor": "middle" }, formatNumber(tick)));
  }
  svg.append(element("text", { x: width - MARGIN.right, y: height - 3, "text-anchor": "end" }, AXES[controls.axis.value]));
}

function describe(chart, all) {
  const parts = all.map(({ metric, run, points }) => {
    const [low] = getRange(points.map(([, y]) => y));
    return `${run.name}, ${LABELS[metric]}: from ${formatNumber(points[0][1])} to ${formatNumber(points.at(-1)[1])}, lowest ${formatNumber(low)}`;
  });
  return `${chart.title}, against ${AXES[controls.axis.value]}. ${parts.join(". ")}.`;
}

function drawChart(chart, [lowX, highX]) {
  const svg = document.querySelector(`[data-chart="${chart.id}"]`);
  const width = svg.clientWidth, height = chart.height;
  const all = listSeries(chart);
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("aria-label", describe(chart, all));
  if (!all.length) return;
  const isLogY = chart.is_loss && controls["log-y"].checked;
  let [low, high] = getRange(all.flatMap((series) => series.shown.map(([, y]) => y)));
  if (!chart.is_loss) low = Math.min(low, 0);
  const x = makeScale(lowX, highX, MARGIN.left, width - MARGIN.right, controls["log-x"].checked, width / 110);
  const y = makeScale(low, high, height - MARGIN.bottom, MARGIN.top, isLogY, height / 45);
  drawGrid(svg, chart, x, y, width, height);
  const clip = `clip-${chart.id}`, size = { x: MARGIN.left, y: 0, width: width - MARGIN.left, height: height - MARGIN.bottom + 2 };
  svg.append(element("clipPath", { id: clip }));
  svg.lastChild.append(element("rect", size));
  for (const { metric, run, number, points, shown, isSmoothed } of all) {
    const group = element("g", { class: `run-${number % 7}`, "clip-path": `url(#${clip})` });
    if (isSmoothed) group.append(element("path", { class: "series pale", d: path(points, x, y) }));
    group.append(element("path", { class: `series ${metric}`, d: path(shown, x, y), "stroke-dasharray": dashOf(number) }));
    if (OF_EVALUATIONS.includes(metric) || points.length === 1)
      for (const [a, b] of shown) group.append(element("circle", { class: "point", cx: x(a).toFixed(1), cy: y(b).toFixed(1), r: 2.5 }));
    if (metric === "train_loss" && controls.axis.value === "step")
      for (const step of run.rollbacks)
        if (step >= lowX) group.append(element("path", { class: "rollback", d: `M${x(step)} ${MARGIN.top}V${height - MARGIN.bottom}` }));
    svg.append(group);
  }
  const at = MARGIN.left + (Number(controls.position.value) / 1000) * (width - MARGIN.left - MARGIN.right);
  svg.append(element("path", { class: "cursor", d: `M${at.toFixed(1)} ${MARGIN.top}V${height - MARGIN.bottom}` }));
}

// The table of the values at the position: the last point of each series that is not after it.
function showValues([lowX, highX]) {
  const x = makeScale(lowX, highX, 0, 1000, controls["log-x"].checked, 5).invert(Number(controls.position.value));
  const metrics = data.charts.flatMap((chart) => chart.metrics);
  const table = document.getElementById("values");
  const isStep = controls.axis.value === "step";
  const at = Math.round(x).toLocaleString("en");
  table.caption.textContent = isStep ? `Values at step ${at}` : `Values after ${at} ${AXES[controls.axis.value]}`;
  table.tHead.replaceChildren(makeRow("th", ["run", ...metrics.map((metric) => LABELS[metric])]));
  const limit = highX > lowX ? x + (highX - lowX) * 1e-9 : Infinity;
  const visible = data.runs.filter((_, number) => runBoxes[number].checked);
  table.tBodies[0].replaceChildren(...visible.map((run) => {
    const values = metrics.map((metric) => listPoints(run, metric).filter(([at]) => at <= limit).at(-1)?.[1]);
    return makeRow("td", [run.name, ...values.map((value) => (value === undefined ? "" : formatNumber(value)))]);
  }));
}

function makeRow(kind, texts) {
  const row = document.createElement("tr");
  texts.forEach((text, i) => {
    const cell = document.createElement(i === 0 && kind === "td" ? "th" : kind);
    if (cell.tagName === "TH") cell.scope = kind === "td" ? "row" : "col";
    cell.textContent = text;
    row.append(cell);
  });
  return row;
}

function drawAll() {
  const range = getAxisRange();
  if (!Number.isFinite(range[0])) {
    for (const svg of document.querySelectorAll("[data-chart]")) svg.replaceChildren();
    document.getElementById("values").tBodies[0].replaceChildren();
    return;
  }
  for (const chart of data.charts) drawChart(chart, range);
  showValues(range);
}

// What the reader has chosen is kept when the page is loaded again.
function save() {
  const chosen = Object.fromEntries([...document.querySelectorAll("main :is(input, select)[id], [data-run]")].map((input) =>
    [input.id || `run ${input.dataset.run}`, input.type === "checkbox" ? input.checked : input.value]));
  const open = [...document.querySelectorAll("details")].map((details) => details.open);
  sessionStorage.setItem(STORE, JSON.stringify({ chosen, open, scroll: scrollY }));
}

function restore() {
  const stored = JSON.parse(sessionStorage.getItem(STORE) ?? "null");
  if (!stored) return;
  for (const [key, value] of Object.entries(stored.chosen)) {
    const input = document.getElementById(key) ?? document.querySelector(`[data-run="${key.replace("run ", "")}"]`);
    if (input) input[input.type === "checkbox" ? "checked" : "value"] = value;
  }
  document.querySelectorAll("details").forEach((details, i) => { details.open = stored.open[i] ?? details.open; });
  requestAnimationFrame(() => scrollTo(0, stored.scroll));
}

for (const path of document.querySelectorAll("[data-dash]")) path.setAttribute("stroke-dasharray", dashOf(Number(path.dataset.dash)));
for (const input of [...Object.values(controls), ...runBoxes]) input.addEventListener("input", drawAll);
for (const svg of document.querySelectorAll("[data-chart]"))
  svg.addEventListener("pointermove", (event) => {
    const share = (event.clientX - svg.getBoundingClientRect().left - MARGIN.left) / (svg.clientWidth - MARGIN.left - MARGIN.right);
    controls.position.value = Math.round(1000 * Math.min(Math.max(share, 0), 1));
    drawAll();
  });
addEventListener("resize", drawAll);
if (data.reload_s) {
  restore();
  setInterval(() => {
    if (document.hidden || document.getElementById("pause").checked) return;
    save();
    location.reload();
  }, 1000 * data.reload_s);
}
drawAll();
