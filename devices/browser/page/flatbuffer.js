// A TFLite file with every free dimension at the size that its shape tells. LiteRT.js can't resize inputs, and refuses what it would have to.
const SUBGRAPHS = 2, TENSORS = 0, SHAPE = 0, SIGNATURE = 7; // places of fields in TFLite's tables

// Where a field's value stands in a table, or 0 for a field that is left out.
function field(view, table, index) {
  const vtable = table - view.getInt32(table, true), at = 4 + 2 * index;
  const offset = at < view.getUint16(vtable, true) ? view.getUint16(vtable + at, true) : 0;
  return offset && table + offset;
}

const target = (view, at) => at + view.getUint32(at, true);

// Where the entries of a vector stand, 4 bytes each.
function entries(view, at) {
  if (!at) return [];
  const vector = target(view, at);
  return Array.from({ length: view.getUint32(vector, true) }, (_, k) => vector + 4 + 4 * k);
}

// The bytes, changed in a copy, and how many dimensions were fixed. What is no TFLite file comes back as it is: the runtime will say so.
export function fixedShapes(bytes) {
  const copy = bytes.slice(), view = new DataView(copy.buffer, copy.byteOffset, copy.byteLength);
  let count = 0;
  try {
    for (const graph of entries(view, field(view, target(view, 0), SUBGRAPHS)))
      for (const place of entries(view, field(view, target(view, graph), TENSORS))) {
        const tensor = target(view, place), shape = entries(view, field(view, tensor, SHAPE));
        entries(view, field(view, tensor, SIGNATURE)).forEach((at, k) => {
          if (view.getInt32(at, true) >= 0 || k >= shape.length) return;
          view.setInt32(at, view.getInt32(shape[k], true), true);
          count += 1;
        });
      }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    return { bytes, count: 0 };
  }
  return { bytes: copy, count };
}
