// Errors with the words that the asking side shows.

export class Told extends Error {
  // kind: "rejected" (the runtime won't take the artifact), "user" (what the user can mend), "internal"
  constructor(kind, what, hint = "") {
    super(what);
    Object.assign(this, { kind, hint });
  }
}

export const rejected = (runtime, file, error) => {
  const lines = String(error?.message ?? error).split("\n").map((line) => line.trim()).filter(Boolean);
  const name = file.split("/").pop();
  return new Told("rejected", `${runtime} rejects ${name}: ${lines.slice(0, 2).join(" ") || "it gave no reason"}`, "export it again, or name other runtimes with --runtime");
};

// What goes into the answer for any error.
export const toldOf = (error) =>
  error instanceof Told
    ? { kind: error.kind, what: error.message, hint: error.hint }
    : { kind: "internal", what: `${error?.name ?? "Error"}: ${error?.message ?? error}`.slice(0, 2000), hint: "" };
