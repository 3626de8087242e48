// What axe looks at first; loaded into the page by the tests. Each returns what is wrong, as a list.

window.checks = {
  nameless() {
    const named = (e) => e.getAttribute("aria-label") || e.closest("label") || (e.labels && e.labels.length)
      || (e.caption && e.caption.textContent.trim())
      || (!["INPUT", "SELECT", "TABLE", "CANVAS"].includes(e.tagName) && e.textContent.trim());
    const all = "button, a[href], input, select, [role=img], [role=region], canvas, table";
    return [...document.querySelectorAll(all)].filter((e) => e.checkVisibility() && !named(e)).map((e) => e.outerHTML.slice(0, 120));
  },
  withoutAlternative: () => [...document.images].filter((e) => !e.alt.trim()).map((e) => e.outerHTML.slice(0, 80)),
  headings: () => [...document.querySelectorAll("h1, h2, h3, h4")].filter((e) => e.checkVisibility()).map((e) => Number(e.tagName[1])),
  twice() {
    const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
    return ids.filter((id, place) => ids.indexOf(id) !== place);
  },
  withoutScope: () => [...document.querySelectorAll("th")].filter((e) => !e.scope).map((e) => e.textContent),
  withoutCaption: () => [...document.querySelectorAll("table")].filter((e) => !e.caption).map((e) => e.outerHTML.slice(0, 80)),
  /** Texts whose contrast (WCAG 2, 1.4.3) is below 4.5. */
  faint() {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 1;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    const over = (colour, under) => {
      for (const each of [`rgb(${under.join(" ")})`, colour]) {
        context.fillStyle = each;
        context.fillRect(0, 0, 1, 1);
      }
      return Array.from(context.getImageData(0, 0, 1, 1).data).slice(0, 3);
    };
    const light = (colour) => {
      const [r, g, b] = colour.map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const under = (e) => {
      const chain = [];
      for (; e; e = e.parentElement) chain.unshift(getComputedStyle(e).backgroundColor);
      return chain.reduce((colour, each) => over(each, colour), [255, 255, 255]);
    };
    const text = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    const shown = [...document.querySelectorAll("body *")].filter((e) => e.checkVisibility()
      && !e.closest("svg, .hidden, option, button:disabled") && text(e));
    return shown.map((e) => {
      const paper = under(e), ink = over(getComputedStyle(e).color, paper), [a, b] = [light(paper), light(ink)];
      return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.textContent.trim().slice(0, 60), ink.join(), paper.join()];
    }).filter(([ratio]) => ratio < 4.5);
  },
};
