// node run.mjs MODEL FEED.json: runs a model in onnxruntime-web and prints its outputs
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
const require = createRequire(import.meta.url);
const ort = require("onnxruntime-web");
ort.env.wasm.numThreads = 1;
const session = await ort.InferenceSession.create(readFileSync(process.argv[2]));
const feeds = {};
for (const [name, { type, dims, data }] of Object.entries(JSON.parse(readFileSync(process.argv[3], "utf8"))))
  feeds[name] = new ort.Tensor(type, type === "int64" ? BigInt64Array.from(data, BigInt) : Float32Array.from(data), dims);
const out = await session.run(feeds);
const told = {};
for (const name of Object.keys(out)) told[name] = Buffer.from(out[name].data.buffer, out[name].data.byteOffset, out[name].data.byteLength).toString("base64");
console.log(JSON.stringify(told));
