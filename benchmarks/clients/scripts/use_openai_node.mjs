// openai-node: chat, the stream and tool helpers, parse with zod, responses.
// Prints the same lines as checks.py. Copied beside node_modules, where imports are looked up.
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { readFileSync } from "node:fs";
import assert from "node:assert/strict";
import { z } from "zod";

const origin = process.env.TDPIPE_ORIGIN ?? "http://127.0.0.1:8000";
const model = process.env.TDPIPE_MODEL ?? "smollm2";
const client = new OpenAI({ baseURL: `${origin}/v1`, apiKey: "none", maxRetries: 0, timeout: 90000 });
const { version } = JSON.parse(readFileSync("node_modules/openai/package.json"));
const question = "What is the capital of France?";
const forecastQuestion = "What will the weather be in Paris in 3 days?";
const messages = [{ role: "user", content: question }];
const forecastMessages = [{ role: "user", content: forecastQuestion }];
const Forecast = z.object({
  city: z.enum(["Paris", "Rome", "Oslo"]), days: z.number().int().min(0).max(9), sunny: z.boolean(),
});

function weather(calls) {
  return {
    type: "function",
    function: {
      name: "weather", description: "The weather in a city, some days from now.",
      parameters: {
        type: "object", required: ["city", "days"], additionalProperties: false,
        properties: { city: { type: "string", enum: ["Paris", "Rome", "Oslo"] },
                      days: { type: "integer", minimum: 0, maximum: 9 } },
      },
      parse: JSON.parse,
      function: (args) => { calls.push(args); return "sunny"; },
    },
  };
}

const checks = {
  "chat and the stream helper": async () => {
    const whole = (await client.chat.completions.create({ model, messages, temperature: 0 }))
      .choices[0].message.content;
    assert.match(whole, /Paris/);
    const stream = client.chat.completions.stream({ model, messages, temperature: 0 });
    let text = "";
    stream.on("content", (delta) => { text += delta; });
    assert.equal(await stream.finalContent(), whole);
    assert.equal(text, whole);
  },
  "runTools, named: one call": async () => {
    const calls = [];
    const runner = client.chat.completions.runTools({
      model, messages: forecastMessages, tools: [weather(calls)], temperature: 0, max_tokens: 100,
      tool_choice: { type: "function", function: { name: "weather" } },
    });
    await runner.done();
    assert.equal(calls.length, 1);
    assert.deepEqual(Object.keys(calls[0]).sort(), ["city", "days"]);
  },
  "runTools in a stream, named: one call": async () => {
    const calls = [];
    const runner = client.chat.completions.runTools({
      model, messages: forecastMessages, tools: [weather(calls)], temperature: 0, max_tokens: 100,
      stream: true, tool_choice: { type: "function", function: { name: "weather" } },
    });
    await runner.done();
    assert.equal(calls.length, 1);
  },
  "parse with zod": async () => {
    const answer = await client.chat.completions.parse({
      model, messages: forecastMessages, response_format: zodResponseFormat(Forecast, "forecast"),
    });
    Forecast.parse(answer.choices[0].message.parsed);
  },
  "responses and their stream": async () => {
    const whole = await client.responses.create({ model, input: question, temperature: 0 });
    assert.match(whole.output_text, /Paris/);
    let text = "";
    for await (const event of client.responses.stream({ model, input: question, temperature: 0 })) {
      if (event.type === "response.output_text.delta") text += event.delta;
    }
    assert.equal(text, whole.output_text);
  },
  "responses: parse with zod": async () => {
    const answer = await client.responses.parse({
      model, input: forecastQuestion, text: { format: zodTextFormat(Forecast, "forecast") },
    });
    Forecast.parse(answer.output_parsed);
  },
};

console.log(JSON.stringify({ client: "openai (npm)", version }));
let failed = 0;
for (const [what, check] of Object.entries(checks)) {
  let error = null;
  try { await check(); } catch (raised) { error = `${raised.name}: ${raised.message}`; failed = 1; }
  console.log(JSON.stringify({ check: what, error }));
}
process.exit(failed);
