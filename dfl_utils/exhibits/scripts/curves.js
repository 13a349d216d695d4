// Quality against rank, of a judge, a metric and a number of candidates to choose.
{
  const DRAWS = 1000;  // of the bootstrap
  const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [480, 280, 68, 12, 12, 44];
  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };
  const draw = (tag, attributes, text = "") => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.textContent = text;
    return element;
  };
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

  // Of the first N candidates of every image: the values at each rank, and their mean, which is a random pick's.
  const ranked = (places, values, count) => {
    const rows = [], random = [];
    places.forEach((row, k) => {
      const order = row.slice(0, count).map((_, n) => n).sort((a, b) => row[a] - row[b]);
      const worth = order.map((n) => values[k][n]);
      const known = worth.filter((value) => value !== null);
      if (!known.length) return;
      rows.push(worth);
      random.push(mean(known));
    });
    return { rows, random };
  };

  const level = (values) => {
    const known = values.filter((value) => value !== null), middle = mean(known);
    const spread = known.length > 1 ? Math.sqrt(known.reduce((sum, value) => sum + (value - middle) ** 2, 0) / (known.length - 1)) : 0;
    const half = (1.96 * spread) / Math.sqrt(known.length);
    return { middle, low: middle - half, high: middle + half };
  };

  // Gain of the best-ranked over a random pick in per cent, and 95 % of its resamples over images.
  const gain = ({ rows, random }, higher) => {
    const pairs = rows.map((row, k) => [row[0], random[k]]).filter(([best]) => best !== null);
    const sign = higher ? 1 : -1, found = [];
    let state = 1;
    const next = () => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      return state / 2 ** 32;
    };
    const percent = (pick) => {
      let best = 0, base = 0;
      for (let k = 0; k < pairs.length; k++) {
        const [one, other] = pairs[pick(k)];
        best += one;
        base += other;
      }
      return (sign * 100 * (best - base)) / base;
    };
    for (let n = 0; n < DRAWS; n++) found.push(percent(() => Math.floor(next() * pairs.length)));
    found.sort((a, b) => a - b);
    return { value: percent((k) => k), low: found[Math.round(0.025 * DRAWS)], high: found[Math.round(0.975 * DRAWS) - 1], n: pairs.length };
  };

  const picture = (levels, base, metric, digits, higher) => {
    const svg = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${metric} at each rank; the numbers stand in the table below` });
    const all = levels.flatMap(({ low, high }) => [low, high]).concat(base);
    const [low, high] = [Math.min(...all), Math.max(...all)], room = high - low || 1;
    const x = (k) => LEFT + ((k + 0.5) * (WIDTH - LEFT - RIGHT)) / levels.length;
    const y = (value) => {
      const part = (value - low) / room;
      return TOP + (higher ? 1 - part : part) * (HEIGHT - TOP - BOTTOM);
    };
    svg.append(draw("path", { class: "axis", d: `M${LEFT} ${TOP}V${HEIGHT - BOTTOM}H${WIDTH - RIGHT}` }));
    svg.append(draw("path", { class: "base", d: `M${LEFT} ${y(base)}H${WIDTH - RIGHT}` }));
    for (const value of [low, base, high]) svg.append(draw("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, value.toFixed(digits)));
    svg.append(draw("polyline", { points: levels.map(({ middle }, k) => `${x(k)},${y(middle)}`).join(" ") }));
    levels.forEach((one, k) => {
      svg.append(draw("path", { class: "bar", d: `M${x(k)} ${y(one.low)}V${y(one.high)}` }), draw("circle", { cx: x(k), cy: y(one.middle), r: 4 }));
      svg.append(draw("text", { x: x(k), y: HEIGHT - BOTTOM + 16, "text-anchor": "middle" }, k + 1));
    });
    svg.append(draw("text", { x: (LEFT + WIDTH) / 2, y: HEIGHT - 8, "text-anchor": "middle" }, "rank: 1 is the most similar"));
    return svg;
  };

  const play = (root, number) => {
    const { judges, measures } = JSON.parse(root.querySelector("[type='application/json']").textContent);
    const most = Object.values(judges)[0][0].length;
    const choose = (name, options, chosen) => {
      const select = make("select", { id: `play-${name}-${number}` });
      options.forEach((option) => select.append(make("option", { value: option, selected: option === chosen }, String(option))));
      return [make("span", {}, make("label", { htmlFor: select.id }, name), " ", select), select];
    };
    const counts = Array.from({ length: most - 1 }, (_, k) => k + 2);
    const [judgeLabel, judge] = choose("judge", Object.keys(judges));
    const [metricLabel, metric] = choose("score", Object.keys(measures));
    const [countLabel, count] = choose("candidates", counts, most);
    const status = make("p"), plot = make("div"), table = make("table");
    status.setAttribute("role", "status");
    const bar = make("p", { className: "play-bar" }, judgeLabel, metricLabel, countLabel);
    root.append(make("div", { className: "play-live" }, bar, status, plot, make("details", {}, make("summary", {}, "The numbers"), table)));

    const show = () => {
      const { values, higher, digits } = measures[metric.value], size = Number(count.value);
      const of = ranked(judges[judge.value], values, size);
      const levels = Array.from({ length: size }, (_, k) => level(of.rows.map((row) => row[k])));
      const base = mean(of.random), change = gain(of, higher), sign = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(1);
      status.textContent = `By ${judge.value}, the best-ranked of ${size} is ${change.value < 0 ? "worse" : "better"} than a random pick (dashed) in ${metric.value}: ${sign(change.value)} % (${sign(change.low)} to ${sign(change.high)}), n = ${change.n} images.`;
      plot.replaceChildren(picture(levels, base, metric.value, digits, higher));
      const head = make("tr", {}, ...["rank", `mean ${metric.value}`, "95 % interval"].map((text) => make("th", { scope: "col" }, text)));
      const body = levels.map((one, k) => make("tr", {}, make("td", {}, String(k + 1)), make("td", {}, one.middle.toFixed(digits)), make("td", {}, `${one.low.toFixed(digits)} to ${one.high.toFixed(digits)}`)));
      const last = make("tr", {}, make("td", {}, "random"), make("td", {}, base.toFixed(digits)), make("td"));
      table.replaceChildren(make("thead", {}, head), make("tbody", {}, ...body, last));
    };
    for (const select of [judge, metric, count]) select.addEventListener("change", show);
    root.classList.add("playing");
    show();
  };

  document.querySelectorAll(".play-curves").forEach((root, number) => root.classList.contains("playing") || play(root, number));
}
