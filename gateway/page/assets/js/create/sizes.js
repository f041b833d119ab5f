// Sizes that a model makes: multiples of its step, within its area and aspect ratio. The gateway rounds none.

const SHAPES = [[1, 1], [4, 3], [3, 4], [3, 2], [2, 3], [16, 9], [9, 16]];
const USUAL = ["512x512", "768x768", "1024x1024", "1536x1024", "1024x1536"];

export function parse(text) {
  const [width, height] = text.split("x").map(Number);
  return { width, height };
}

// Why a size will not do, in words; empty if it will.
export function complaint({ width, height }, rules) {
  for (const [name, value] of [["Width", width], ["Height", height]]) {
    if (!Number.isInteger(value) || value < 1) return `${name} must be a whole number of pixels.`;
    if (value % rules.multiple) {
      const low = Math.max(rules.multiple, value - (value % rules.multiple));
      return `${name} must be a multiple of ${rules.multiple}: ${low} or ${low + rules.multiple}, not ${value}.`;
    }
  }
  if (width * height > rules.max_pixels) {
    return `${width} × ${height} is more than this model's ${rules.max_pixels.toLocaleString()} pixels.`;
  }
  if (Math.max(width, height) > Math.min(width, height) * rules.max_aspect_ratio) {
    return `The longer edge may be at most ${rules.max_aspect_ratio} times the shorter one.`;
  }
  return "";
}

// The model's own size first, then the usual shapes of about the same area, then OpenAI's sizes that fit.
export function offered(rules) {
  const own = parse(rules.default);
  const area = Math.min(own.width * own.height, rules.max_pixels);
  const edge = (pixels) => Math.max(1, Math.round(pixels / rules.multiple)) * rules.multiple;
  const shaped = SHAPES.map(([across, down]) => {
    const scale = Math.sqrt(area / (across * down));
    return `${edge(across * scale)}x${edge(down * scale)}`;
  });
  const all = new Set([rules.default, ...shaped, ...USUAL]);
  return [...all].filter((size) => !complaint(parse(size), rules));
}
