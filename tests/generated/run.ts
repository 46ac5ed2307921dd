// A run with the client that was generated for TypeScript: node run.js URL WEIGHTS VOLUME FOLDER
import { readFileSync, writeFileSync } from "node:fs";
import { argv } from "node:process";

import { Configuration, JobViewFromJSON, JobsApi, ProblemFromJSON, ResponseError, SpleensegApi } from "./pfms";

const [url, weights, volume, folder] = argv.slice(2);
const modelID = "typescript";
const configuration = new Configuration({ basePath: url });
const spleenseg = new SpleensegApi(configuration);
const jobs = new JobsApi(configuration);

const blob = (path: string) => new Blob([readFileSync(path)]);
const save = async (name: string, content: Blob) =>
  writeFileSync(`${folder}/${name}`, new Uint8Array(await content.arrayBuffer()));

async function run() {
  const stored = await spleenseg.uploadModel({ modelID, file: blob(weights) });
  console.log("model", stored.modelID, stored.size);

  await save("blocking.nii.gz", await spleenseg.infer({ modelID, file: blob(volume) }));

  const accepted = await spleenseg.inferRaw({ modelID, file: blob(volume), prefer: "respond-async" });
  let job = JobViewFromJSON(await accepted.raw.json());
  while (job.endedAt === null) {
    await new Promise((resolve) => setTimeout(resolve, 50));
    job = await jobs.showJob({ jobId: job.id });
  }
  console.log("job", job.state, job.segmentation?.spleenVoxels);
  await save("async.nii.gz", await jobs.showResult({ jobId: job.id }));
  const page = await jobs.listJobs({ state: "succeeded", limit: 1 });
  console.log("newest", page.jobs[0].id === job.id);

  try {
    await jobs.showJob({ jobId: "none" });
  } catch (error) {
    if (!(error instanceof ResponseError)) throw error;
    const problem = ProblemFromJSON(await error.response.json());
    console.log("refused", problem.status, problem.code);
  }
}

run();
