// A run with the client that was generated for Go: run URL WEIGHTS VOLUME FOLDER
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"time"

	"example/pfms"
)

func main() {
	url, weights, volume, folder := os.Args[1], os.Args[2], os.Args[3], os.Args[4]
	configuration := pfms.NewConfiguration()
	configuration.Servers = pfms.ServerConfigurations{{URL: url}}
	client, ctx := pfms.NewAPIClient(configuration), context.Background()

	stored, _, err := client.SpleensegAPI.UploadModel(ctx).ModelID("go").File(open(weights)).Execute()
	check(err)
	fmt.Println("model", stored.ModelID, stored.Size)

	infer := func() pfms.ApiInferRequest {
		return client.SpleensegAPI.Infer(ctx).ModelID("go").File(open(volume))
	}
	result, _, err := infer().Execute()
	check(err)
	save(result, folder, "blocking.nii.gz")

	_, accepted, err := infer().Prefer("respond-async").Execute()
	check(err)
	job := &pfms.JobView{}
	check(json.NewDecoder(accepted.Body).Decode(job))
	for !job.EndedAt.IsSet() || job.EndedAt.Get() == nil {
		time.Sleep(50 * time.Millisecond)
		job, _, err = client.JobsAPI.ShowJob(ctx, job.Id).Execute()
		check(err)
	}
	fmt.Println("job", job.State, job.Segmentation.Get().SpleenVoxels)
	result, _, err = client.JobsAPI.ShowResult(ctx, job.Id).Execute()
	check(err)
	save(result, folder, "async.nii.gz")
	page, _, err := client.JobsAPI.ListJobs(ctx).State("succeeded").Limit(1).Execute()
	check(err)
	fmt.Println("newest", page.Jobs[0].Id == job.Id)

	_, _, err = client.JobsAPI.ShowJob(ctx, "none").Execute()
	var refused *pfms.GenericOpenAPIError
	if !errors.As(err, &refused) {
		log.Fatal(err)
	}
	problem := refused.Model().(pfms.Problem)
	fmt.Println("refused", problem.Status, problem.Code)
}

func open(path string) *os.File {
	file, err := os.Open(path)
	check(err)
	return file
}

func save(result *os.File, folder, name string) {
	content, err := io.ReadAll(result)
	check(err)
	check(os.WriteFile(filepath.Join(folder, name), content, 0o644))
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
