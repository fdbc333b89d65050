// Answers of transformers.js in Node to JSON lines on standard input: {"text"} or {"question", "context"}.
// Arguments: the folder that holds the model's folder, its name, task, dtype.
import { createInterface } from "node:readline";
import { env, pipeline } from "@huggingface/transformers";

const [parent, name, task, dtype] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = parent;
const model = await pipeline(task, name, { dtype, device: "cpu" });
for await (const line of createInterface({ input: process.stdin })) {
  const row = JSON.parse(line);
  const found = "question" in row ? await model(row.question, row.context) : await model(row.text, { top_k: null });
  console.log(JSON.stringify(found));
}
