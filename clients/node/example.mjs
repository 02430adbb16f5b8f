// node example.mjs [ADDRESS] [MODEL]: embeds three sentences and prints how alike they are.
import { connect } from "hone-client";

const [address = "127.0.0.1:7000", model = "minilm"] = process.argv.slice(2);
const texts = ["How do I reset my password?", "I forgot my login.", "The museum opens at nine."];

const client = connect(address);
const { vectors, served } = await client.embed(model, texts);
client.close();

const dot = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0);
const cosine = (a, b) => dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
for (const i of [1, 2]) console.log(`${cosine(vectors[0], vectors[i]).toFixed(3)}  ${texts[0]} | ${texts[i]}`);
console.log(`${served.model}@${served.version} on ${served.replica}: ${(served.computeNs / 1e6).toFixed(1)} ms`);
