"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const slider = document.getElementById("epoch");
  const name = document.getElementById("epoch-name");
  const boxes = [...document.querySelectorAll(".series input")];
  const narrow = window.matchMedia("(max-width: 47rem)");
  // On a touch screen a drag scrolls the page, so it must not select a part of a chart.
  const touch = window.matchMedia("(pointer: coarse)");
  const config = { responsive: true, displaylogo: false, displayModeBar: false, scrollZoom: false };
  const common = {
    margin: { l: 8, r: 8, t: 8, b: 8 }, showlegend: false, hovermode: "closest", paper_bgcolor: "#fff", plot_bgcolor: "#fff",
    font: { family: "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif", size: 12, color: "#1c1c1c" },
    hoverlabel: { bgcolor: "#fff", font: { color: "#1c1c1c" } },
  };

  const draw = (id) => {
    const chart = data.charts[id];
    const shown = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
    // Plotly changes its arguments, so it gets copies.
    const traces = structuredClone(chart.frames.length > 1 ? chart.frames[Number(slider.value)] : chart.frames[0]);
    const layout = { ...common, ...structuredClone(chart.layout), dragmode: touch.matches ? false : "zoom" };
    if (narrow.matches) {
      Object.assign(layout.xaxis, chart.narrow);
    }
    traces.forEach((trace) => { trace.visible = shown.has(trace.meta); });
    return Plotly.react(`chart-${id}`, traces, layout, config);
  };
  const drawAll = () => Promise.all(Object.keys(data.charts).map(draw));

  const move = () => {
    const index = Number(slider.value);
    name.textContent = data.epochs[index];
    slider.setAttribute("aria-valuetext", data.epochs[index]);
    document.querySelectorAll(".remark").forEach((remark) => {
      remark.textContent = data.remarks[remark.dataset.series][index];
    });
    Object.keys(data.charts).filter((id) => data.charts[id].frames.length > 1).forEach(draw);
  };

  slider.value = "0";
  boxes.forEach((box) => { box.checked = true; box.addEventListener("change", drawAll); });
  slider.addEventListener("input", move);
  narrow.addEventListener("change", drawAll);
  drawAll().then(() => { document.documentElement.dataset.drawn = "yes"; });
})();
