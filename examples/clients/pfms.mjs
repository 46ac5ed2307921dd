// Segment a CT with pfms, from Node.js 18 or later (a browser has the same fetch and FormData):
//
//   node pfms.mjs SERVER upload MODEL WEIGHTS
//   node pfms.mjs SERVER infer  MODEL VOLUME OUTPUT        waits for the segmentation
//   node pfms.mjs SERVER submit MODEL VOLUME OUTPUT KEY    asks for it until it is there
//
// Node's fetch gives up after 5 minutes without an answer: use submit for longer runs.

import { readFile, writeFile } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";

async function main(server, command, model, file, output, key) {
  const route = command === "upload" ? "modelpth" : "NIfTIinference";
  const form = new FormData();
  form.set("file", new Blob([await readFile(file)]));
  const headers = {};
  if (command === "submit") {
    // The same key again finds the same job, so a call that broke off can be made again.
    headers["Prefer"] = "respond-async";
    headers["Idempotency-Key"] = key;
  }
  const url = new URL(`${server}/api/v1/spleenseg/${route}`);
  url.searchParams.set("modelID", model);
  let answer = await call(url, { method: "POST", headers, body: form });
  if (command === "upload") {
    console.log("stored with the checksum", (await answer.json()).sha256);
    return;
  }
  console.log("job", answer.headers.get("X-Pfms-Job"));
  if (answer.status === 202) {
    answer = await resultOf(new URL(answer.headers.get("Location"), url));
  }
  await writeFile(output, Buffer.from(await answer.arrayBuffer()));
}

async function resultOf(job) {
  while (["queued", "running"].includes((await (await call(job)).json()).state)) {
    await sleep(1000);
  }
  return call(`${job}/result`);
}

async function call(url, options) {
  const answer = await fetch(url, options);
  if (answer.ok) return answer;
  if (answer.headers.get("Content-Type") === "application/problem+json") {
    const { detail, remedy } = await answer.json();
    throw new Error(`${detail} ${remedy}`);
  }
  throw new Error(`${answer.status} ${answer.statusText}`); // for example from a proxy
}

const words = process.argv.slice(2);
if (words.length !== { upload: 4, infer: 5, submit: 6 }[words[1]]) {
  console.error("usage: pfms.mjs SERVER upload MODEL WEIGHTS");
  console.error("       pfms.mjs SERVER infer  MODEL VOLUME OUTPUT");
  console.error("       pfms.mjs SERVER submit MODEL VOLUME OUTPUT KEY");
  process.exit(2);
}
try {
  await main(...words);
} catch (error) {
  console.error(error.cause ? `${error.message}: ${error.cause.message}` : error.message);
  process.exitCode = 1;
}
