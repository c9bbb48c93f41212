// What a page is told of the machine that it runs on.

const silent = (reason, unit = "") => ({ value: null, unit, reason });

// The smallest step of the page's clock in ms: browsers make it coarse on purpose.
export function timerStepMs() {
  let smallest = Infinity;
  const end = performance.now() + 200;
  for (let seen = 0, last = performance.now(); seen < 64 && last < end; ) {
    const now = performance.now();
    if (now > last) {
      smallest = Math.min(smallest, now - last);
      last = now;
      seen++;
    }
  }
  return Number.isFinite(smallest) ? smallest : 1;
}

let adapterFound; // asked once: {adapter, reason, text, fallback}
export function adapter() {
  adapterFound ??= (async () => {
    if (!navigator.gpu) return { adapter: null, fallback: false, text: "", reason: isSecureContext
      ? "this browser has no WebGPU"
      : "browsers give WebGPU only to pages from https:// or from this machine itself" };
    const found = await navigator.gpu.requestAdapter({ powerPreference: "high-performance" }).catch(() => null);
    if (!found) return { adapter: null, fallback: false, text: "", reason: "this browser has WebGPU, but no adapter (GPU) for it here" };
    const info = found.info ?? {};
    const fallback = Boolean(info.isFallbackAdapter ?? found.isFallbackAdapter);
    const text = [info.vendor, info.architecture, info.device, info.description].filter(Boolean).join(" ") || "not named";
    return { adapter: found, fallback, text: fallback ? `${text} (a fallback adapter: software)` : text, reason: "" };
  })();
  return adapterFound;
}

// "Chrome 156 on Linux": from the user agent string, which may not tell the whole truth.
function named(agent) {
  const browsers = [["Edge", /Edg(?:A|iOS)?\/(\d+)/], ["Samsung Internet", /SamsungBrowser\/(\d+)/], ["Firefox", /(?:Firefox|FxiOS)\/(\d+)/],
    ["Chrome", /(?:Chrome|CriOS)\/(\d+)/], ["Safari", /Version\/(\d+[.\d]*).*Safari/]];
  const systems = [["Android", /Android ?([\d.]*)/], ["iOS", /(?:iPhone|CPU) OS ([\d_]+)/], ["macOS", /Mac OS X ([\d_.]+)/],
    ["Windows", /Windows NT ([\d.]+)/], ["ChromeOS", /CrOS/], ["Linux", /Linux/]];
  const find = (table) => {
    const row = table.find(([, pattern]) => pattern.test(agent));
    return row ? `${row[0]} ${(agent.match(row[1])[1] ?? "").replaceAll("_", ".")}`.trim() : "an unknown one";
  };
  return `${find(browsers)} on ${find(systems)}`;
}

async function power() {
  if (!navigator.getBattery) return silent("this browser does not tell pages whether it runs on battery");
  const battery = await navigator.getBattery().catch(() => null);
  if (!battery) return silent("the browser would not tell");
  return { value: battery.charging ? "mains" : `battery, ${Math.round(battery.level * 100)} %`, unit: "", reason: "" };
}

async function high() {
  const wanted = ["architecture", "bitness", "model", "platform", "platformVersion"];
  return (await navigator.userAgentData?.getHighEntropyValues?.(wanted).catch(() => null)) ?? {};
}

export const snapshot = () => ({
  governor: silent("a page is not told the governor"),
  clock_mhz: silent("a page is not told the CPU's clock", "MHz"),
  temperature_c: silent("a page is not told the temperature", "°C"),
  load_average: silent("a page is not told what else runs"),
});

// {machine, hints, step, cores}: `hints` go with every figure that this page gives. Emulated: the GPU asked for is software.
export async function machine(backend) {
  const gpu = await adapter(), model = await high(), step = timerStepMs();
  const cores = navigator.hardwareConcurrency || 1;
  const hints = {
    user_agent: navigator.userAgent,
    cross_origin_isolated: String(Boolean(globalThis.crossOriginIsolated)),
    secure_context: String(Boolean(globalThis.isSecureContext)),
    timer_step_ms: String(Number(step.toPrecision(3))),
    hardware_concurrency: String(cores),
    webgpu_adapter: gpu.text || `none: ${gpu.reason}`,
  };
  if (model.model) hints.device_model = model.model;
  return {
    hints, cores, step,
    machine: {
      cpu_model: silent("a page is not told the CPU"),
      machine: model.architecture ? `${model.architecture}${model.bitness ? ` ${model.bitness}-bit` : ""}` : "not told",
      cores_online: cores,
      cpu_quota: silent("a page is not told of limits", "cores"),
      virtualised: silent("a page is not told"),
      emulated: backend === "webgpu" && gpu.fallback,
      power_source: await power(),
      os: named(navigator.userAgent),
      python: "none: JavaScript and WebAssembly",
    },
  };
}
