// A square of cells that one paints with a pointer or with the keyboard: patches to hide, ink to draw, a patch to pick.
function render({ model, el }) {
  const caption = el.appendChild(document.createElement("div")), canvas = document.createElement("canvas");
  caption.textContent = model.get("label");
  const size = 280, pen = canvas.getContext("2d"), background = new Image();
  canvas.width = canvas.height = size;
  canvas.tabIndex = 0;
  canvas.className = "mae-painter";
  canvas.style.cssText = "touch-action: none; cursor: crosshair; max-width: 100%; border: 1px solid #888;";
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-label", model.get("label"));
  el.appendChild(canvas);
  const said = el.appendChild(document.createElement("div"));       // for those who do not see the cursor
  said.setAttribute("aria-live", "polite");
  said.style.cssText = "position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%);";

  let cells = model.get("cells").slice();
  let cursor = [0, 0], focused = false, painting = null, scheduled = false;
  const side = () => model.get("side"), mode = () => model.get("mode");

  function draw() {
    const step = size / side();
    pen.imageSmoothingEnabled = false;
    pen.fillStyle = "black";
    pen.fillRect(0, 0, size, size);
    if (background.naturalWidth) pen.drawImage(background, 0, 0, size, size);
    cells.forEach((value, i) => {
      const x = (i % side()) * step, y = Math.floor(i / side()) * step;
      if (mode() === "ink") {
        const grey = Math.round(255 * value);
        pen.fillStyle = `rgb(${grey}, ${grey}, ${grey})`;
        pen.fillRect(x, y, step + 0.5, step + 0.5);
      } else if (value && mode() === "hide") {
        pen.fillStyle = model.get("color");
        pen.fillRect(x, y, step, step);
      }
      if (mode() !== "ink") {
        pen.strokeStyle = "#7775";
        pen.lineWidth = 1;
        pen.strokeRect(x + 0.5, y + 0.5, step - 1, step - 1);
      }
      if (value && mode() === "pick") frame(i % side(), Math.floor(i / side()), "#d9730d");
    });
    if (focused) frame(cursor[0], cursor[1], "#3b9eff");
  }

  function frame(column, row, color) {
    const step = size / side();
    pen.strokeStyle = color;
    pen.lineWidth = 3;
    pen.strokeRect(column * step + 1.5, row * step + 1.5, step - 3, step - 3);
  }

  function send() {                       // at most once a frame, however fast the pointer moves
    if (scheduled) return;
    scheduled = true;
    requestAnimationFrame(() => {
      scheduled = false;
      model.set("cells", cells.slice());
      model.save_changes();
    });
  }

  function paint(column, row) {
    if (column < 0 || row < 0 || column >= side() || row >= side()) return;
    const here = row * side() + column;
    if (mode() === "pick") cells = cells.map((_, i) => (i === here ? 1 : 0));
    else if (mode() === "hide") cells[here] = painting;
    else cells = cells.map((old, i) => {
      const far = Math.hypot((i % side()) - column, Math.floor(i / side()) - row);
      return Math.max(old, Math.min(1, Math.max(0, 1.9 - far)));      // a stroke of about two pixels with a soft edge
    });
    cursor = [column, row];
    draw();
    send();
  }

  const WORDS = { hide: ["visible", "hidden"], pick: ["not picked", "picked"], ink: ["blank", "inked"] };

  function tell() {
    const [column, row] = cursor, word = WORDS[mode()][cells[row * side() + column] ? 1 : 0];
    said.textContent = `row ${row + 1}, column ${column + 1}, ${word}`;
  }

  function where(event) {
    const box = canvas.getBoundingClientRect(), inside = (v, length) => Math.floor(v / length * side());
    return [inside(event.clientX - box.left, box.width), inside(event.clientY - box.top, box.height)];
  }

  function begin(column, row) {           // a whole stroke does what its first cell needs: hide, or show again
    painting = cells[row * side() + column] ? 0 : 1;
    paint(column, row);
  }

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;       // the others belong to the browser
    canvas.setPointerCapture(event.pointerId);
    begin(...where(event));
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!event.buttons) painting = null;  // the end of the stroke can get lost, in a dialogue or another window
    if (painting !== null) paint(...where(event));
  });
  for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
    canvas.addEventListener(end, () => { painting = null; });
  }
  canvas.addEventListener("focus", () => { focused = true; draw(); });
  canvas.addEventListener("blur", () => { focused = false; draw(); });
  canvas.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (event.shiftKey || event.ctrlKey || event.altKey || event.metaKey) return;       // Shift+Enter runs the cell
    if (!moves && event.key !== " " && event.key !== "Enter") return;
    event.preventDefault();
    event.stopPropagation();              // or the notebook would move to another cell
    if (moves) {
      cursor = cursor.map((v, axis) => Math.min(side() - 1, Math.max(0, v + moves[axis])));
      draw();
    } else {
      begin(...cursor);
      painting = null;
    }
    tell();
  });

  function picture() {
    background.onload = draw;
    background.src = model.get("picture");
  }
  function fresh() {                      // Python changed the cells: a new mask, a cleared sheet
    if (painting === null && !scheduled) { cells = model.get("cells").slice(); draw(); }
  }
  model.on("change:picture", picture);
  model.on("change:cells change:side", fresh);
  if (model.get("picture")) picture();
  draw();
}
export default { render };
