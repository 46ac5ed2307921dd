# Segment a CT with pfms, from Ruby:
#
#   ruby pfms.rb SERVER upload MODEL WEIGHTS
#   ruby pfms.rb SERVER infer  MODEL VOLUME OUTPUT        waits for the segmentation
#   ruby pfms.rb SERVER submit MODEL VOLUME OUTPUT KEY    asks for it until it is there

require "json"
require "net/http"

def main(server, command, model, file, output = nil, key = nil)
  route = command == "upload" ? "modelpth" : "NIfTIinference"
  url = URI("#{server}/api/v1/spleenseg/#{route}")
  url.query = URI.encode_www_form(modelID: model)
  request = Net::HTTP::Post.new(url)
  if command == "submit"
    # The same key again finds the same job, so a call that broke off can be made again.
    request["Prefer"] = "respond-async"
    request["Idempotency-Key"] = key
  end
  answer = File.open(file, "rb") do |content|
    request.set_form([["file", content]], "multipart/form-data")
    # Net::HTTP waits for 60 seconds by default, and a run may take longer.
    call(request, read_timeout: command == "infer" ? nil : 60)
  end
  return puts "stored with the checksum #{JSON.parse(answer.body)["sha256"]}" if command == "upload"

  puts "job #{answer["X-Pfms-Job"]}"
  answer = result_of(URI.join(url, answer["Location"])) if answer.code == "202"
  File.binwrite(output, answer.body)
end

def result_of(job)
  sleep 1 while %w[queued running].include?(JSON.parse(get(job).body)["state"])
  get(URI("#{job}/result"))
end

def get(url) = call(Net::HTTP::Get.new(url))

def call(request, **options)
  url = request.uri
  options[:use_ssl] = url.scheme == "https"
  answer = Net::HTTP.start(url.host, url.port, **options) { |http| http.request(request) }
  return answer if answer.is_a?(Net::HTTPSuccess)

  abort "#{answer.code} #{answer.message}" if answer.content_type != "application/problem+json"
  problem = JSON.parse(answer.body)
  abort "#{problem["detail"]} #{problem["remedy"]}"
end

if ARGV.length != { "upload" => 4, "infer" => 5, "submit" => 6 }[ARGV[1]]
  warn "usage: pfms.rb SERVER upload MODEL WEIGHTS"
  warn "       pfms.rb SERVER infer  MODEL VOLUME OUTPUT"
  warn "       pfms.rb SERVER submit MODEL VOLUME OUTPUT KEY"
  exit 2
end
main(*ARGV)
