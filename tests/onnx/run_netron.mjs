// node run_netron.mjs NETRON MODEL: opens a model as Netron does and prints what it would show
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";
const [folder, file] = process.argv.slice(2);
const load = (name) => import(pathToFileURL(`${folder}/${name.replace(/^\.\//, "")}.js`).href);
const [view, base] = [await load("view"), await load("base")];
const host = { type: "Test", environment: () => null, event: () => {}, exception: (error) => { throw error; }, require: load };
const context = {
  identifier: "model.onnx", stream: new base.BinaryStream(readFileSync(file)), entries: new Map(),
  asset: async (name) => readFileSync(`${folder}/${name}`, "utf8"), request: async (name) => readFileSync(`${folder}/${name}`, "utf8"),
  fetch: async (name) => { throw new Error(`no ${name}`); }, error: (error) => { throw error; }, require: load,
};
const model = await new view.ModelFactoryService(host).open(context);
const nodes = (graph) => graph.nodes.map((node) => ({
  type: node.type.name, module: node.type.module,
  inputs: node.inputs.flatMap((i) => i.value.map((v) => ({ name: v.name, type: String(v.type ?? ""), constant: !!v.initializer }))),
  outputs: node.outputs.flatMap((o) => o.value.map((v) => v.name)),
}));
const told = { format: model.format, graph: nodes(model.modules[0]), functions: {} };
for (const item of model.functions ?? []) told.functions[item.name] = nodes(item).map((node) => node.type);
console.log(JSON.stringify(told));
