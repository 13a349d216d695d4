// The telephone game: candidates to choose from; what the models made of them is shown after the choice.
{
  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };
  const nth = (n) => n + (["th", "st", "nd", "rd"][n % 100 > 10 && n % 100 < 14 ? 0 : n % 10] ?? "th");

  const play = (root, number) => {
    const game = JSON.parse(root.querySelector("[type='application/json']").textContent);
    const words = game.kind === "captions"
      ? { scene: "Scene", ask: "Which caption is the best of this image?", button: "See what was drawn", one: "caption", alt: "drawn from it" }
      : { scene: "Text", ask: "Which drawing shows best what the text was written of?", button: "See what was read", one: "drawing", alt: "drawing" };
    const better = game.higher ? "higher is better" : "lower is better";
    const shown = (worth) => worth.toFixed(game.digits);
    const picked = new Map();  // round -> the first pick, which counts
    const place = (candidates, k) =>
      1 + candidates.filter((one) => (game.higher ? one.worth > candidates[k].worth : one.worth < candidates[k].worth)).length;
    const figure = (image, alt, text) =>
      make("figure", {}, make("img", { src: image, alt }), make("figcaption", {}, text));

    const scene = make("select", { id: `play-scene-${number}` });
    game.rounds.forEach((_, k) => scene.append(make("option", { value: k }, `${k + 1} of ${game.rounds.length}`)));
    const given = make("div", { className: "gallery" });
    const choices = make("fieldset");
    const button = make("button", { type: "submit" }, words.button);
    const status = make("p", { tabIndex: -1 });
    status.setAttribute("role", "status");
    const outcome = make("ol", { className: "gallery outcome" });
    const score = make("table");
    const form = make("form", {}, choices, button);
    const label = make("label", { htmlFor: scene.id }, `${words.scene} `);
    const live = make("div", { className: "play-live" }, make("p", {}, label, scene), given, form, status, outcome, score);
    score.hidden = true;

    const start = () => {
      const { given: before, candidates } = game.rounds[scene.value];
      given.replaceChildren(before.image ? figure(before.image, "the original image", "the original") : make("blockquote", {}, before.text));
      choices.replaceChildren(make("legend", {}, words.ask));
      choices.classList.toggle("pictures", game.kind === "drawings");
      candidates.forEach((one, k) => {
        const radio = make("input", { type: "radio", name: `play-pick-${number}`, value: k, required: true });
        const seen = game.kind === "captions" ? one.text : make("img", { src: one.image, alt: `drawing ${k + 1}` });
        choices.append(make("label", {}, radio, " ", seen));
      });
      choices.disabled = false;
      button.hidden = false;
      status.textContent = "";
      outcome.replaceChildren();
    };

    const average = (pick) => {
      const values = [...picked.keys()].map((k) => pick(game.rounds[k], k));
      return shown(values.reduce((sum, value) => sum + value, 0) / values.length);
    };

    const count = () => {
      const worths = (round) => round.candidates.map((one) => one.worth);
      const rows = [["you", average((round, k) => round.candidates[picked.get(k)].worth)]];
      for (const judge of Object.keys(game.rounds[0].judges))
        rows.push([judge, average((round) => round.candidates[round.judges[judge].indexOf(0)].worth)]);
      rows.push(["a random pick", average((round) => worths(round).reduce((a, b) => a + b) / round.candidates.length)]);
      rows.push(["the best there was", average((round) => Math[game.higher ? "max" : "min"](...worths(round)))]);
      const head = make("tr", {}, make("th", { scope: "col" }, "picked by"), make("th", { scope: "col" }, `mean ${game.metric}, ${better}`));
      const body = rows.map(([who, worth]) => make("tr", {}, make("th", { scope: "row" }, who), make("td", {}, worth)));
      score.replaceChildren(make("caption", {}, `After ${picked.size} of ${game.rounds.length}`), make("thead", {}, head), make("tbody", {}, ...body));
      score.hidden = false;
    };

    const reveal = (pick) => {
      const { then, candidates, judges } = game.rounds[scene.value];
      const order = candidates.map((_, k) => k).sort((a, b) => place(candidates, a) - place(candidates, b));
      if (then.image) given.append(figure(then.image, "the image that the text was written of", "the original"));
      outcome.replaceChildren(...order.map((k) => {
        const one = candidates[k];
        const lines = [one.text, `${game.metric} ${shown(one.worth)}`, ...Object.entries(judges).map(([judge, places]) => `${judge}: ${nth(places[k] + 1)}`)];
        const text = lines.flatMap((line) => [line, make("br")]).slice(0, -1);
        if (k === pick) text.unshift(make("strong", {}, "Your pick. "));
        const item = make("li", { className: k === pick ? "picked" : "" });
        item.append(make("figure", {}, make("img", { src: one.image, alt: words.alt }), make("figcaption", {}, ...text)));
        return item;
      }));
      const theirs = Object.entries(judges).map(([judge, places]) => `${judge} the ${nth(place(candidates, places.indexOf(0)))}`);
      status.textContent = `You picked the ${place(candidates, pick) === 1 ? "" : nth(place(candidates, pick)) + " "}best ${words.one} of ${candidates.length}, ${game.metric} ${shown(candidates[pick].worth)}; ${theirs.join(", ")}. All of them, the best first:`;
    };

    scene.addEventListener("change", start);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const pick = Number(new FormData(form).get(`play-pick-${number}`)), round = Number(scene.value);
      if (!picked.has(round)) picked.set(round, pick);
      choices.disabled = true;
      button.hidden = true;
      reveal(pick);
      count();
      status.focus();
    });
    root.append(live);
    root.classList.add("playing");
    start();
  };

  document.querySelectorAll(".play-telephone").forEach((root, number) => root.classList.contains("playing") || play(root, number));
}
