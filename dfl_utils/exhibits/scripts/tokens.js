// Two tokenizers as the libraries have them: BERT's WordPiece (uncased) and CLIP's byte pairs; and a map from one to the other.
{
  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };
  const lower = (text) => [...text].map((char) => char.toLowerCase()).join("");  // char by char: no final sigma
  const PUNCTUATION = /[!-/:-@[-`{-~\p{P}]/u;
  const CHINESE = /[\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\u{20000}-\u{2a6df}\u{2a700}-\u{2ceaf}\u{2f800}-\u{2fa1f}]/gu;
  const CLIP = /'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+/gu;

  const unpack = async (text) => {
    const bytes = Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  };

  const wordPiece = (vocabulary) => (text) => {
    const clean = text.replace(/(?![\t\n\r])[\p{C}\ufffd]/gu, "").replace(/\s/gu, " ").replace(CHINESE, " $& ");
    const plain = lower(clean.normalize("NFD").replace(/\p{Mn}/gu, ""));
    const words = plain.split(/\s+/u).flatMap((part) => [...part].reduce((found, char) => {
      if (PUNCTUATION.test(char)) found.push(char, "");
      else found[found.length - 1] += char;
      return found;
    }, [""])).filter(Boolean);
    return words.flatMap((word) => {
      const chars = [...word], pieces = [];
      if (chars.length > 100) return ["[UNK]"];
      for (let start = 0, end; start < chars.length; start = end) {
        const spelled = () => (start ? "##" : "") + chars.slice(start, end).join("");
        for (end = chars.length; end > start && !vocabulary.has(spelled()); end--);
        if (end === start) return ["[UNK]"];
        pieces.push(spelled());
      }
      return pieces;
    });
  };

  // The characters that stand for the 256 bytes: themselves where they can be printed, others from 256 on.
  const alphabet = () => {
    const printed = (byte) => (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
    let next = 256;
    return Array.from({ length: 256 }, (_, byte) => String.fromCodePoint(printed(byte) ? byte : next++));
  };

  const bytePairs = (merges) => {
    const rank = new Map(merges.map((pair, k) => [pair, k])), chars = alphabet(), encoder = new TextEncoder();
    return (text) => (lower(text.normalize("NFC").replace(/\s+/gu, " ")).match(CLIP) ?? []).flatMap((word) => {
      let pieces = [...encoder.encode(word)].map((byte) => chars[byte]);
      pieces[pieces.length - 1] += "</w>";
      for (;;) {
        const ranks = pieces.slice(1).map((piece, k) => rank.get(`${pieces[k]} ${piece}`) ?? Infinity);
        const best = Math.min(...ranks);
        if (best === Infinity) return pieces;
        const merged = [];
        for (let k = 0; k < pieces.length; k++) merged.push(ranks[k] === best ? pieces[k] + pieces[++k] : pieces[k]);
        pieces = merged;
      }
    });
  };

  // CLIP's vocabulary: the bytes, the bytes that end a word, what each pair makes, and the two ends of a text.
  const names = (merges) => {
    const chars = alphabet().map((char, byte) => [char, byte]);
    const printed = ([char, byte]) => char.codePointAt(0) === byte;
    const order = [...chars.filter(printed), ...chars.filter((one) => !printed(one))].map(([char]) => char);
    return [...order, ...order.map((char) => `${char}</w>`), ...merges.map((pair) => pair.replace(" ", "")), "<|startoftext|>", "<|endoftext|>"];
  };

  const play = async (root, number) => {
    const { packed } = JSON.parse(root.querySelector("[type='application/json']").textContent);
    const { words, merges, index, how, rules } = await unpack(packed);
    const ids = new Map(words.map((word, k) => [word, k])), clipNames = names(merges);
    const cut = { BLIP: wordPiece(ids), CLIP: bytePairs(merges) };
    const input = make("input", { id: `play-caption-${number}`, type: "text", value: "A giraffe's neck above the sleigh", autocomplete: "off", spellcheck: false });
    const status = make("p"), lists = {};
    status.setAttribute("role", "status");
    const live = make("div", { className: "play-live" }, make("p", {}, make("label", { htmlFor: input.id }, "Your caption "), input), status);
    for (const [name, title] of Object.entries({ BLIP: "BLIP cuts", CLIP: "Stable Diffusion (CLIP) cuts", map: "The map makes of BLIP's tokens" })) {
      lists[name] = make("ol", { className: `pieces pieces-${name}` });
      live.append(make("p", { className: "pieces-title" }, title), lists[name]);
    }
    const bare = (piece) => piece.replace(/^##|<\/w>$/g, "");
    const same = (one, other) => one.length === other.length && one.every((piece, k) => piece === other[k]);
    const show = () => {
      const blip = cut.BLIP(input.value), clip = cut.CLIP(input.value);
      const mapped = blip.map((piece) => ids.get(piece)).map((id) => ({ name: index[id] === null ? `${bare(words[id])}</w>` : clipNames[index[id]] ?? "nothing", rule: rules[how[id]] }));
      const item = (piece, hint = "") => make("li", {}, make("code", {}, piece), hint && make("small", {}, ` ${hint}`));
      lists.BLIP.replaceChildren(...blip.map((piece) => item(piece)));
      lists.CLIP.replaceChildren(...clip.map((piece) => item(piece)));
      lists.map.replaceChildren(...mapped.map(({ name, rule }) => item(name, rule)));
      const alike = same(blip.map(bare), clip.map(bare)), own = same(mapped.map(({ name }) => name), clip);
      status.textContent = `${blip.length} and ${clip.length} tokens: cut ${alike ? "alike" : "differently"}; the mapped tokens are ${own ? "" : "not "}CLIP's own.`;
    };
    input.addEventListener("input", show);
    root.append(live);
    root.classList.add("playing");
    show();
  };

  document.querySelectorAll(".play-tokens").forEach((root, number) => root.classList.contains("started") || (root.classList.add("started"), play(root, number)));
}
