// node:http, with a form made by hand and sent in chunks: SERVER upload|infer MODEL FILE [OUTPUT]

import { createReadStream, writeFileSync } from "node:fs";
import { request } from "node:http";

const [server, command, model, file, output] = process.argv.slice(2);
const route = command === "upload" ? "modelpth" : "NIfTIinference";
const call = request(`${server}/api/v1/spleenseg/${route}?modelID=${model}`, {
  method: "POST",
  headers: { "Content-Type": "multipart/form-data; boundary=by-hand" },
});
call.on("response", async (answer) => {
  const body = Buffer.concat(await answer.toArray());
  if (answer.statusCode !== 200) {
    console.error(body.toString());
    process.exitCode = 1;
    call.destroy(); // it sends no more once it has been answered, and would wait for ever
  } else if (output) {
    writeFileSync(output, body);
  }
});
call.write('--by-hand\r\nContent-Disposition: form-data; name="file"\r\n\r\n');
createReadStream(file)
  .on("end", () => call.end("\r\n--by-hand--\r\n"))
  .pipe(call, { end: false });
