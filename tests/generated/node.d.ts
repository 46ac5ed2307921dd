// What run.ts uses of Node.js.
declare module "node:fs" {
  export function readFileSync(path: string): Uint8Array;
  export function writeFileSync(path: string, content: Uint8Array): void;
}
declare module "node:process" {
  export const argv: string[];
}
