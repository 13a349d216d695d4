// Says a point's numbers where it is pointed at or reached by keyboard.
for (const root of document.querySelectorAll(".play-front")) {
  const status = root.querySelector("[role='status']");
  for (const point of root.querySelectorAll("g")) {
    const say = () => (status.textContent = point.getAttribute("aria-label"));
    point.addEventListener("mouseenter", say);
    point.addEventListener("focus", say);
  }
}
